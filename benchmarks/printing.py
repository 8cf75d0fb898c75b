"""Tables on the terminal."""

from __future__ import annotations

import sys

import rich.table
from rich.console import Console

from benchmarks.tables import Table


def console() -> Console:
    """Of standard output; a file or a pipe has no width that tables would have to fit."""
    return Console() if sys.stdout.isatty() else Console(width=200)


def printable(table: Table) -> rich.table.Table:
    """For the console; bold marks of Markdown are left out."""
    printed = rich.table.Table(*table.header, title=table.title, title_justify="left")
    for cells in table.rows:
        printed.add_row(*(cell.replace("**", "") for cell in cells))
    return printed
