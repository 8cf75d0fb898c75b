"""Command line: `python -m benchmarks.kernels --help`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import rich.table
from rich.console import Console
from tqdm import tqdm

from benchmarks.backend import served_by
from benchmarks.kernels import tables
from benchmarks.kernels.results import Document, default_path, new_document, save
from benchmarks.kernels.suite import FULL, QUICK, Case, cases, run

INTERRUPTED = 130  # as a shell reports SIGINT


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernels",
        description="Time capped_relu against what a user could write instead, and against plain copies.",
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2, what the targets are for)")
    parser.add_argument("--quick", action="store_true", help="one large input and few samples, in about a minute")
    parser.add_argument(
        "--output",
        type=Path,
        help="result file; default: benchmarks/results/<device>/kernels.json, and none at all with --quick",
    )
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    options = parser.parse_args(arguments)
    if options.threads < 1:
        parser.error(f"--threads: got {options.threads}; expected at least 1")

    served_by(parser)
    document = new_document(options.threads, quick=options.quick)
    output = options.output
    if output is None and not options.quick:
        output = default_path(document["device"])
    selected = cases(quick=options.quick, compiled=not options.no_compile)
    try:
        measure(document, selected, output)
    except KeyboardInterrupt:
        kept = f"; {output} holds the cases that were done" if output and document["rows"] else ""
        print(f"interrupted{kept}", file=sys.stderr)
        return INTERRUPTED
    show(document)
    if output:
        print(f"written: {output}")
    return 0


def measure(document: Document, selected: Sequence[Case], output: Path | None) -> None:
    """Fill the document case by case, and write it after each."""
    effort = QUICK if document["quick"] else FULL
    with tqdm(total=len(selected), unit="case") as bar:
        bar.set_description(_label(selected[0]))
        for done, (_, rows) in enumerate(run(selected, effort, document["threads"]), start=1):
            document["rows"] += rows
            document["complete"] = done == len(selected)
            if output:
                save(document, output)
            bar.update()
            if not document["complete"]:
                bar.set_description(_label(selected[done]))


def _label(case: Case) -> str:
    return f"{case.name}, {tables.DTYPES[case.dtype_name]}"


def show(document: Document) -> None:
    """Print every row, and the targets."""
    # A file or a pipe has no width that tables would have to fit.
    console = Console() if sys.stdout.isatty() else Console(width=200)
    for table in (*tables.row_tables(document), tables.target_table(document)):
        printed = rich.table.Table(*table.header, title=table.title, title_justify="left")
        for cells in table.rows:
            printed.add_row(*(cell.replace("**", "") for cell in cells))
        console.print(printed)
    facts = "; ".join(tell(document) for tell in (tables.headline, tables.noise, tables.page_faults))
    console.print(f"{facts}.", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
