"""Tables on the terminal."""

from __future__ import annotations

import sys

import rich.table
from rich.console import Console

from benchmarks.harness.table import Table


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """``exit_with`` ends the command; rich would end it with code 1, by itself."""
        raise  # noqa: PLE0704 (rich calls this while it handles the error)


def console() -> Console:
    """Of standard output; a file or a pipe has no width that tables would have to fit."""
    return _Console() if sys.stdout is not None and sys.stdout.isatty() else _Console(width=200)


def printable(table: Table) -> rich.table.Table:
    """For the console; bold marks of Markdown are left out."""
    printed = rich.table.Table(*table.header, title=table.title, title_justify="left")
    for cells in table.rows:
        printed.add_row(*(cell.replace("**", "") for cell in cells))
    return printed
