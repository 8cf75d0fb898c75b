"""Command line: `python -m benchmarks.kernels --help`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.backend import served_by
from benchmarks.harness.entry import exit_with
from benchmarks.harness.machine import Document, default_path, new_document
from benchmarks.harness.table import DTYPES
from benchmarks.kernels import suite, tables
from benchmarks.kernels.suite import FULL, QUICK, Case, Failure, Row, cases
from benchmarks.printing import console, printable
from benchmarks.running import run_cases


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
        help="result file; default: benchmarks/results/<device>/kernels.json; with --quick, --cases or --dtypes none",
    )
    parser.add_argument("--limit", type=float, help="seconds after which no other case is begun; default: none")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    names, dtypes = (sorted({getattr(case, of) for case in suite.cases()}) for of in ("name", "dtype_name"))
    for option, values in (("cases", names), ("dtypes", dtypes)):
        parser.add_argument(
            f"--{option}", nargs="+", choices=values, metavar="NAME", help=f"some of: {'; '.join(values)}; default: all"
        )
    options = parser.parse_args(arguments)
    if options.threads < 1:
        parser.error(f"--threads: got {options.threads}; expected at least 1")

    served_by(parser)
    document = new_document(options.threads, quick=options.quick)
    output = options.output
    partial = options.cases is not None or options.dtypes is not None
    if output is None and not options.quick and not partial:
        output = default_path(document["device"])
    selected = [
        case
        for case in cases(quick=options.quick, compiled=not options.no_compile)
        if case.name in (options.cases or [case.name]) and case.dtype_name in (options.dtypes or [case.dtype_name])
    ]
    if not selected:
        parser.error("--cases, --dtypes: got names that no case has together")
    code = measure(document, selected, output, options.limit)
    if not document["rows"]:
        return code
    show(document)
    if output:
        print(f"written: {output}")
    return code


def measure(document: Document, selected: Sequence[Case], output: Path | None, limit: float | None = None) -> int:
    """Fill the document; the exit code of ``run_cases``."""
    budget = QUICK if document["quick"] else FULL
    threads = document["threads"]

    def run(case: Case) -> tuple[list[Row], list[Failure]]:
        return suite.run_case(replace(case, threads=case.threads or threads), budget)

    return run_cases(document, selected, run, output, name=_label, limit=limit)


def _label(case: Case) -> str:
    return f"{case.name}, {DTYPES[case.dtype_name]}"


def show(document: Document) -> None:
    """Print every row, and the targets."""
    terminal = console()
    for table in (*tables.row_tables(document), tables.target_table(document)):
        terminal.print(printable(table))
    facts = "; ".join(tell(document) for tell in (tables.headline, tables.noise, tables.page_faults))
    terminal.print(f"{facts}.", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    exit_with(main)
