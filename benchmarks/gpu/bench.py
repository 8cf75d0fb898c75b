"""The kernel benchmark on a GPU: `python -m benchmarks.gpu.bench --help`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks import resuming
from benchmarks.backend import served_by_cuda
from benchmarks.gpu import tables
from benchmarks.gpu.document import ROWS, Document, case_name, case_of, folder_of, new_document
from benchmarks.gpu.suite import FULL, QUICK, GpuCase, Row, cases, run_case
from benchmarks.harness.cuda_graphs import Machine, cuda_machine
from benchmarks.harness.entry import exit_with
from benchmarks.harness.machine import FILE_NAME
from benchmarks.harness.table import markdown
from benchmarks.kernels.suite import Failure
from benchmarks.pictures.source import Source
from benchmarks.running import run_cases

SUITE: resuming.Suite[GpuCase] = resuming.Suite(
    name=lambda case: case_name(case.name, case.dtype_name),
    implementations=lambda case: case.implementations,
    rows=ROWS,
    failed=lambda document: map(case_of, document["failures"]),
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few cases and samples, in about a minute")
    parser.add_argument("--out", type=Path, help="folder for the results; default: benchmarks/results/<gpu>")
    parser.add_argument("--limit", type=float, help="seconds after which no other case is begun; default: none")
    resuming.add_argument(parser)
    options = parser.parse_args(arguments)
    served_by_cuda(parser)
    document = new_document(quick=options.quick)
    folder = options.out or folder_of(document["device"])
    output = folder / FILE_NAME
    selected = resuming.cases_left(parser, options.resume, document, cases(quick=options.quick), SUITE)
    code = measure(document, selected, cuda_machine(), output, options.limit)
    if document["rows"]:
        show(document)
        draw(document, output.with_suffix(".png"))
    return code


def measure(
    document: Document, selected: Sequence[GpuCase], machine: Machine, output: Path, limit: float | None = None
) -> int:
    """Fill the document; the exit code of ``run_cases``."""
    budget = QUICK if document["quick"] else FULL

    def run(case: GpuCase) -> tuple[list[Row], list[Failure]]:
        found = run_case(case, budget, machine)
        machine.release()
        return found

    return run_cases(document, selected, run, output, name=SUITE.name, limit=limit)


def show(document: Document) -> None:
    for table in (tables.case_table(document), tables.target_table(document)):
        print(f"\n{markdown(table)}")
    print(f"\n{tables.headline(document)}.", flush=True)


def draw(document: Document, path: Path) -> None:
    try:
        from benchmarks.pictures import roofline  # noqa: PLC0415 (matplotlib may be missing: the figures are not)
    except ImportError as error:
        print(f"no picture: {error}")
        return
    # Wherever it lies now, that is where it is to lie.
    name = f"{folder_of(document['device']).name}/{FILE_NAME}"
    roofline.draw(dict(document), path, replace(Source.of(path.with_suffix(".json")), name=name))
    print(f"written: {path.with_suffix('.json')}, {path}", flush=True)


if __name__ == "__main__":
    exit_with(main)
