"""The kernel benchmark on a card: `python -m benchmarks.gpu.bench --help`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.gpu import tables
from benchmarks.gpu.document import Document, folder_of, new_document
from benchmarks.gpu.suite import FULL, QUICK, GpuCase, cases, run_case
from benchmarks.gpu.timing import Machine, cuda_machine
from benchmarks.kernels.results import FILE_NAME, save
from benchmarks.kernels.tables import DTYPES, markdown
from dreluop.backends import native

INTERRUPTED = 130  # as a shell reports SIGINT


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few cases and samples, in about a minute")
    parser.add_argument("--out", type=Path, help="folder for the results; default: benchmarks/results/<card>")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.error("torch sees no CUDA device")
    reason = native.cuda_reason()
    if reason is not None:
        parser.error(f"the native CUDA kernels do not serve, and the reference is not measured unasked: {reason}")
    document = new_document(quick=options.quick)
    folder = options.out or folder_of(document["device"])
    output = folder / FILE_NAME
    try:
        measure(document, cases(quick=options.quick), cuda_machine(), output)
    except KeyboardInterrupt:
        kept = f"; {output} holds the cases that were done" if document["rows"] else ""
        print(f"interrupted{kept}", file=sys.stderr, flush=True)
    if document["rows"]:
        show(document)
        draw(document, output.with_suffix(".png"))
    return 0 if document["complete"] else INTERRUPTED


def measure(document: Document, selected: Sequence[GpuCase], machine: Machine, output: Path) -> None:
    """Fill the document case by case, and write it after each."""
    effort = QUICK if document["quick"] else FULL
    for done, case in enumerate(selected, start=1):
        started = time.monotonic()
        rows, failures = run_case(case, effort, machine)
        machine.release()
        document["rows"] += rows
        document["failures"] += failures
        document["complete"] = done == len(selected)
        save(document, output)
        label = f"[{done}/{len(selected)}] {case.name}, {DTYPES[case.dtype_name]}"
        print(f"{label}: {time.monotonic() - started:.1f} s", flush=True)
        for failure in failures:
            print(f"    not measured: {failure['contender'] or 'the case'}: {failure['reason']}", flush=True)


def show(document: Document) -> None:
    for table in (tables.case_table(document), tables.target_table(document)):
        print(f"\n{markdown(table)}")
    print(f"\n{tables.headline(document)}.", flush=True)


def draw(document: Document, path: Path) -> None:
    try:
        from benchmarks.gpu import picture  # noqa: PLC0415 (matplotlib may be missing: the figures are not)
    except ImportError as error:
        print(f"no picture: {error}")
        return
    picture.draw(document, path)
    print(f"written: {path.with_suffix('.json')}, {path}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
