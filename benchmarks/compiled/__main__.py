"""Command line: `python -m benchmarks.compiled --help`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import resuming
from benchmarks.backend import served_by, served_by_cuda
from benchmarks.compiled import suite
from benchmarks.compiled.tables import FILE_NAME, all_tables, headline
from benchmarks.gpu import document as gpu
from benchmarks.harness import interleave as measure
from benchmarks.harness import machine as results
from benchmarks.harness.entry import exit_with
from benchmarks.harness.table import markdown
from benchmarks.kernels.targets import THREADS
from benchmarks.models.attempts import Failure
from benchmarks.running import run_cases
from benchmarks.scaling.document import folder as folder_of

SCHEMA = 1


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compiled",
        description="Time whole training steps of compiled networks: clamp, ours in both forms, plain ReLU.",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    names = tuple(dict.fromkeys(case.name for cases in suite.CASES.values() for case in cases))
    parser.add_argument("--networks", nargs="+", choices=names, default=names, metavar="NAME", help=f"of {names}")
    parser.add_argument(
        "--implementations", nargs="+", choices=suite.IMPLEMENTATIONS, default=suite.IMPLEMENTATIONS, metavar="NAME",
        help=f"some of {'; '.join(suite.IMPLEMENTATIONS)}; default: all",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="three samples of the dense network; no file")
    parser.add_argument("--limit", type=float, help="seconds for the whole run; what does not fit is left out, by name")
    parser.add_argument("--threads", type=int, default=THREADS, help=f"on a CPU (default: {THREADS})")
    parser.add_argument("--out", type=Path, help=f"folder for {FILE_NAME}; default: benchmarks/results/<device>")
    resuming.add_argument(parser)
    options = parser.parse_args(arguments)
    if options.threads < 1:
        parser.error(f"--threads: got {options.threads}; expected at least 1")
    if options.limit is not None and not options.limit > 0:
        parser.error(f"--limit: got {options.limit}; expected more than 0 seconds")
    (served_by_cuda if options.device == "cuda" else served_by)(parser)
    cases = suite.chosen(options.device, options.networks, options.implementations)
    budget = suite.BUDGET[options.device]
    if options.quick:
        cases, budget = [suite.DENSE], suite.QUICK
    with measure.threads(options.threads if options.device == "cpu" else torch.get_num_threads()):
        platform = suite.platform_of(options.device)
        document = new_document(platform.device, quick=options.quick)
        resumable = suite.resumable(options.implementations)
        cases = resuming.cases_left(parser, options.resume, document, cases, resumable)
        folder = options.out or (None if options.quick else folder_of(document["device"]))
        output = folder / FILE_NAME if folder else None
        until = None if options.limit is None else time.monotonic() + options.limit

        def run_one(case: suite.Case) -> tuple[list[dict[str, Any]], list[Failure]]:
            return suite.run_case(case, tuple(options.implementations), budget, platform, until)

        name, seconds = resumable.name, (lambda case: case.seconds)
        code = run_cases(document, cases, run_one, output, name=name, limit=options.limit, seconds=seconds)
    print(f"\n{headline(document)}.")
    for table in all_tables(document):
        print(f"\n{table.title}\n\n{markdown(table)}")
    if output and document["rows"]:
        print(f"written: {output}")
    return code or int(not document["rows"])


def new_document(device: torch.device, *, quick: bool) -> dict[str, Any]:
    on_a_gpu = device.type == "cuda"
    return {
        "schema": SCHEMA,
        "complete": False,
        "quick": quick,
        "date": results.now(),
        "device": gpu.describe_gpu() if on_a_gpu else results.describe_device(device),
        "threads": torch.get_num_threads(),
        "versions": gpu.versions() if on_a_gpu else results.versions(),
        "commit": results.commit(),
        "earlier": [],
        "missing": [],
        "failures": [],
        "rows": [],
    }


if __name__ == "__main__":
    exit_with(main)
