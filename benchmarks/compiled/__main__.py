"""Command line: `python -m benchmarks.compiled --help`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.backend import served_by
from benchmarks.compiled import suite
from benchmarks.compiled.tables import FILE_NAME, headline, table
from benchmarks.kernels import measure, results
from benchmarks.kernels.targets import THREADS
from benchmarks.models.attempts import Failure
from benchmarks.running import run_cases
from benchmarks.tables import markdown

SCHEMA = 1


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compiled",
        description="Time whole training steps of compiled networks on the CPU: clamp, ours in both forms, plain ReLU.",
    )
    names = tuple(case.name for case in suite.CASES)
    parser.add_argument("--networks", nargs="+", choices=names, default=names, metavar="NAME", help=f"of {names}")
    parser.add_argument(
        "--contenders", nargs="+", choices=suite.CONTENDERS, default=suite.CONTENDERS, metavar="NAME",
        help=f"some of {'; '.join(suite.CONTENDERS)}; default: all",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="three steps of the dense network; no file")
    parser.add_argument("--limit", type=float, help="seconds for the whole run; what does not fit is left out, by name")
    parser.add_argument("--threads", type=int, default=THREADS, help=f"CPU threads (default: {THREADS})")
    parser.add_argument("--out", type=Path, help=f"folder for {FILE_NAME}; default: benchmarks/results/<device>")
    options = parser.parse_args(arguments)
    if options.threads < 1:
        parser.error(f"--threads: got {options.threads}; expected at least 1")
    if options.limit is not None and not options.limit > 0:
        parser.error(f"--limit: got {options.limit}; expected more than 0 seconds")
    served_by(parser)
    cases = [case for case in suite.CASES if case.name in options.networks]
    effort = suite.EFFORT
    if options.quick:
        cases, effort = [suite.DENSE], suite.QUICK
    with measure.threads(options.threads):
        document = new_document(quick=options.quick)
        folder = options.out or (None if options.quick else results.default_path(document["device"]).parent)
        output = folder / FILE_NAME if folder else None
        until = None if options.limit is None else time.monotonic() + options.limit

        def run_one(case: suite.Case) -> tuple[list[dict[str, Any]], list[Failure]]:
            return suite.run_case(case, tuple(options.contenders), effort, until)

        code = run_cases(document, cases, run_one, output, name=lambda case: case.label, limit=options.limit)
    print(f"\n{headline(document)}.\n\n{markdown(table(document))}")
    if output and document["rows"]:
        print(f"written: {output}")
    return code or int(not document["rows"])


def new_document(*, quick: bool) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "complete": False,
        "quick": quick,
        "date": results.now(),
        "device": results.describe_device(torch.device("cpu")),
        "threads": torch.get_num_threads(),
        "versions": results.versions(),
        "commit": results.commit(),
        "missing": [],
        "failures": [],
        "rows": [],
    }


if __name__ == "__main__":
    sys.exit(main())
