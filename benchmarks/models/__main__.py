"""Command line: `python -m benchmarks.models --help`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import resuming
from benchmarks.backend import served_by, served_by_cuda
from benchmarks.harness import interleave as measure
from benchmarks.harness.entry import exit_with
from benchmarks.harness.table import markdown
from benchmarks.kernels.targets import THREADS
from benchmarks.models import largest, suite, tables
from benchmarks.models.attempts import Failure, reason_of
from benchmarks.models.document import FILE_NAME, Document, folder_of, new_document
from benchmarks.models.implementations import IMPLEMENTATIONS
from benchmarks.models.largest import Search
from benchmarks.models.networks import NETWORKS
from benchmarks.models.steps import MODES, Platform, cpu_place, cuda_platform, searching_algorithms
from benchmarks.models.suite import CPU_BUDGET, GPU_BUDGET, QUICK, Row, Work
from benchmarks.running import run_cases


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.models",
        description="Time whole training steps and inference of the paper's networks.",
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda where there is one")
    parser.add_argument("--quick", action="store_true", help="one case of reduced size, in half a minute")
    parser.add_argument("--limit", type=float, help="seconds for the whole run; what does not fit is left out, by name")
    parser.add_argument(
        "--out", type=Path, help=f"folder for {FILE_NAME}; default: benchmarks/results/<device>, none with --quick"
    )
    resuming.add_argument(parser)
    _choice(parser, "--networks", tuple(NETWORKS))
    _choice(parser, "--implementations", IMPLEMENTATIONS)
    _choice(parser, "--modes", MODES)
    parser.add_argument("--threads", type=int, default=THREADS, help=f"CPU threads without a GPU (default: {THREADS})")
    options = parser.parse_args(arguments)
    if options.threads < 1:
        parser.error(f"--threads: got {options.threads}; expected at least 1")
    if options.limit is not None and not options.limit > 0:
        parser.error(f"--limit: got {options.limit}; expected more than 0 seconds")
    platform = _place(parser, options.device)
    on_a_gpu = platform.device.type == "cuda"
    threads = torch.get_num_threads() if on_a_gpu else options.threads
    with measure.threads(threads):
        document = new_document(platform.device, quick=options.quick)
        everything = suite.cases(platform.device, quick=options.quick)
        work = suite.chosen(everything, options.networks, options.implementations, options.modes)
        if not work:
            parser.error("--networks, --implementations, --modes: no case is left of them")
        work = resuming.cases_left(parser, options.resume, document, work, suite.SUITE)
        folder = options.out or (None if options.quick else folder_of(document))
        output = folder / FILE_NAME if folder else None
        code = run(document, work, platform, output, options.limit)
    measured = document["rows"] or document["largest"]
    if measured:
        show(document)
    if measured and output:
        print(f"written: {output}")
    return code or int(not measured)


def _choice(parser: argparse.ArgumentParser, option: str, known: tuple[str, ...]) -> None:
    parser.add_argument(
        option,
        nargs="+",
        choices=known,
        default=known,
        metavar="NAME",
        help=f"some of {'; '.join(known)}; default: all",
    )


def _place(parser: argparse.ArgumentParser, asked: str | None) -> Platform:
    if asked == "cuda" or (asked is None and torch.cuda.is_available()):
        served_by_cuda(parser)
        return cuda_platform()
    served_by(parser)
    return cpu_place()


def run(
    document: Document, work: Sequence[Work], platform: Platform, output: Path | None, limit: float | None = None
) -> int:
    """Fill the document; the exit code of ``run_cases``."""
    budget = QUICK if document["quick"] else GPU_BUDGET if platform.device.type == "cuda" else CPU_BUDGET
    until = None if limit is None else time.monotonic() + limit

    def run_one(one: Work) -> tuple[list[Row], list[Failure]]:
        rows: list[Row] = []
        with searching_algorithms(not isinstance(one, Search)):
            try:
                if isinstance(one, Search):
                    found, failures = largest.find_all(one, platform, until)
                    document["largest"] += found
                else:
                    rows, failures = suite.run_case(one, budget, platform, until)
            except Exception as error:
                failures = [{"case": one.label, "implementation": None, "reason": reason_of(error)}]
        suite.forget(one, platform)
        return rows, failures

    name = suite.SUITE.name
    return run_cases(document, work, run_one, output, name=name, limit=limit, seconds=lambda one: one.seconds)


def show(document: Document) -> None:
    for table in tables.all_tables(document):
        print(f"\n{table.title}\n\n{markdown(table)}")
    print(f"\n{tables.headline(document)}.", flush=True)


if __name__ == "__main__":
    exit_with(main)
