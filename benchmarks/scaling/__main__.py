"""Command line: `python -m benchmarks.scaling --help`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks import resuming
from benchmarks.backend import served_by, served_by_cuda
from benchmarks.harness.entry import exit_with
from benchmarks.running import run_cases
from benchmarks.scaling import suite
from benchmarks.scaling.cases import Point, points
from benchmarks.scaling.document import FILE_NAME, SUITE, Document, folder, new_document
from benchmarks.scaling.platforms import platform_of
from benchmarks.scaling.suite import Failure, Platform, Row


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling",
        description="Time over the size of x and over the number of caps, with the floor.",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--limit", type=float, help="seconds after which no other point is begun; default: none")
    parser.add_argument("--quick", action="store_true", help="few points and samples; no file unless --out is given")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--out", type=Path, help="folder for the result; default: benchmarks/results/<device>")
    resuming.add_argument(parser)
    options = parser.parse_args(arguments)
    if options.device == "cuda":
        served_by_cuda(parser)
    else:
        served_by(parser)
    platform = platform_of(options.device)
    document = new_document(platform.machine, quick=options.quick)
    output = None
    if options.out is not None or not options.quick:
        output = (options.out or folder(document["device"])) / FILE_NAME
    selected = points(
        options.device, platform.machine.cache_bytes, quick=options.quick, compiled=not options.no_compile
    )
    selected = resuming.cases_left(parser, options.resume, document, selected, SUITE)
    code = measure(document, selected, platform, output, options.limit)
    if output is not None and document["rows"]:
        print(f"written: {output}")
    return code


def measure(
    document: Document, selected: Sequence[Point], platform: Platform, output: Path | None, limit: float | None = None
) -> int:
    """Fill the document; the exit code of ``run_cases``."""
    budget = suite.QUICK if document["quick"] else suite.FULL[platform.kind]

    def run(point: Point) -> tuple[list[Row], list[Failure]]:
        found = suite.run_point(point, budget, platform)
        platform.machine.release()
        return found

    return run_cases(document, selected, run, output, name=SUITE.name, limit=limit)


if __name__ == "__main__":
    exit_with(main)
