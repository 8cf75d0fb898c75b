"""Command line: `python -m benchmarks.models --help`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.backend import served_by
from benchmarks.kernels import measure
from benchmarks.kernels.results import save
from benchmarks.kernels.targets import THREADS
from benchmarks.models import largest, suite, tables
from benchmarks.models.attempts import NO_TIME, Failure, reason_of
from benchmarks.models.contenders import CONTENDERS
from benchmarks.models.document import FILE_NAME, Document, folder_of, new_document
from benchmarks.models.largest import Search
from benchmarks.models.networks import NETWORKS
from benchmarks.models.steps import MODES, Place, cpu_place, cuda_place
from benchmarks.models.suite import CPU_EFFORT, GPU_EFFORT, QUICK, Work
from benchmarks.tables import markdown
from dreluop.backends import native

INTERRUPTED = 130  # as a shell reports SIGINT


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
    _choice(parser, "--networks", tuple(NETWORKS))
    _choice(parser, "--contenders", CONTENDERS)
    _choice(parser, "--modes", MODES)
    parser.add_argument("--threads", type=int, default=THREADS, help=f"CPU threads without a GPU (default: {THREADS})")
    options = parser.parse_args(arguments)
    if options.threads < 1:
        parser.error(f"--threads: got {options.threads}; expected at least 1")
    if options.limit is not None and not options.limit > 0:
        parser.error(f"--limit: got {options.limit}; expected more than 0 seconds")
    until = None if options.limit is None else time.monotonic() + options.limit
    place = _place(parser, options.device)
    on_a_gpu = place.device.type == "cuda"
    threads = torch.get_num_threads() if on_a_gpu else options.threads
    with measure.threads(threads):
        document = new_document(place.device, quick=options.quick)
        everything = suite.cases(place.device, quick=options.quick)
        work = suite.chosen(everything, options.networks, options.contenders, options.modes)
        if not work:
            parser.error("--networks, --contenders, --modes: no case is left of them")
        folder = options.out or (None if options.quick else folder_of(document))
        output = folder / FILE_NAME if folder else None
        try:
            run(document, work, place, output, until)
        except KeyboardInterrupt:
            kept = f"; {output} holds the cases that were done" if output and _has_results(document) else ""
            print(f"interrupted{kept}", file=sys.stderr, flush=True)
            return INTERRUPTED
    show(document)
    if output and _has_results(document):
        print(f"written: {output}")
    return int(not _has_results(document))


def _choice(parser: argparse.ArgumentParser, option: str, known: tuple[str, ...]) -> None:
    parser.add_argument(
        option,
        nargs="+",
        choices=known,
        default=known,
        metavar="NAME",
        help=f"some of {'; '.join(known)}; default: all",
    )


def _place(parser: argparse.ArgumentParser, asked: str | None) -> Place:
    available = torch.cuda.is_available()
    if asked == "cuda" and not available:
        parser.error(f"--device: got cuda, and torch {torch.__version__} sees no CUDA device")
    if asked == "cpu" or not available:
        served_by(parser)
        return cpu_place()
    place = cuda_place()
    reason = native.cuda_reason()
    if reason is not None:
        parser.error(f"the native CUDA kernels do not serve, and the reference is not measured unasked: {reason}")
    return place


def run(document: Document, work: Sequence[Work], place: Place, output: Path | None, until: float | None) -> None:
    """Fill the document piece by piece, and write it after each; ``missing`` names at any time what it lacks.

    Args:
        until: when, by ``time.monotonic``, to end; pieces that would take longer are left out.
    """
    document["missing"] = [one.label for one in work]
    with tqdm(work, unit="case", disable=None) as bar:
        for number, one in enumerate(bar, start=1):
            bar.set_description(one.label)
            started = time.monotonic()
            if until is not None and started + one.seconds > until:
                bar.write(f"[{number}/{len(work)}] {one.label}: {NO_TIME} for its {one.seconds:.0f} s")
                continue
            failures = _one(document, one, place, until)
            document["failures"] += failures
            document["missing"].remove(one.label)
            cut = any(failure["reason"] == NO_TIME for failure in document["failures"])
            document["complete"] = not document["missing"] and not cut
            if output and _has_results(document):
                save(document, output)
            bar.write(f"[{number}/{len(work)}] {one.label}: {time.monotonic() - started:.1f} s")
            for failure in failures:
                bar.write(f"    not measured: {failure['contender'] or 'the case'}: {failure['reason']}")


def _has_results(document: Document) -> bool:
    return bool(document["rows"] or document["largest"])


def _one(document: Document, one: Work, place: Place, until: float | None) -> list[Failure]:
    failures: list[Failure] = []
    with _searching_algorithms(not isinstance(one, Search)):
        try:
            if isinstance(one, Search):
                found, failures = largest.find_all(one, place, until)
                document["largest"] += found
            else:
                rows, failures = suite.run_case(one, _effort(document, place), place, until)
                document["rows"] += rows
        except Exception as error:
            failures = [{"case": one.label, "contender": None, "reason": reason_of(error)}]
    suite.forget(one, place)
    return failures


def _effort(document: Document, place: Place) -> measure.Effort:
    if document["quick"]:
        return QUICK
    return GPU_EFFORT if place.device.type == "cuda" else CPU_EFFORT


@contextmanager
def _searching_algorithms(wanted: bool) -> Iterator[None]:
    """cuDNN times its algorithms for every new shape, as a training does; not for a batch that is only to fit."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = wanted
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def show(document: Document) -> None:
    for table in tables.all_tables(document):
        print(f"\n{table.title}\n\n{markdown(table)}")
    print(f"\n{tables.headline(document)}.", flush=True)


if __name__ == "__main__":
    sys.exit(main())
