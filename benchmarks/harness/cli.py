"""One command line for all benchmarks, and their loop: case after case, the record written after each.

Whatever ends a run leaves a valid record of the cases that were done: the limit, Ctrl-C, or a crash.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import machine, table
from benchmarks.harness.cuda_graphs import platform_of
from benchmarks.harness.interleave import threads
from benchmarks.harness.machine import Platform
from benchmarks.harness.records import NO_TIME, SUFFIX, Record, load, new_record
from benchmarks.harness.table import Table

INTERRUPTED = 130  # as a shell reports SIGINT
OUT_OF_TIME = 3
THREADS = 2  # what the targets on a processor are meant for


@dataclass(frozen=True)
class Run:
    """What a case is measured with.

    Attributes:
        until: when, by ``time.monotonic``, to end; None: never.
    """

    platform: Platform
    quick: bool = False
    until: float | None = None


@dataclass(frozen=True)
class Bench:
    """A benchmark: cases in, rows out.

    Attributes:
        name: of the command and of the record.
        about: for the help.
        cases: those of a kind of device ("cpu", "cuda") with the settings of a record, the more telling first. One may
            have ``seconds``: what it takes, about; with a limit, it is begun only if it fits.
        run: gives the rows of a case, and failures (``attempts.failure``).
        key: the fields of a row that tell the rows of a case apart.
        headline: one sentence: what measured a record, when, and whether all of it.
        tables: of a record.
        devices: on which it can be measured.
        settings: what else has to be the same from run to run, beside ``quick`` and ``threads``.
        extra_versions: of packages that matter to this benchmark.
        finish: what else is done with a record and its file at the end; gives an exit code, 0 if all is well.
    """

    name: str
    about: str
    cases: Callable[[str, Mapping[str, Any]], Sequence[Any]]
    run: Callable[[Any, Run], list[dict[str, Any]]]
    key: tuple[str, ...]
    headline: Callable[[Record], str]
    tables: Callable[[Record], list[Table]]
    devices: tuple[str, ...] = ("cpu", "cuda")
    settings: Callable[[Platform], dict[str, Any]] = lambda platform: {}
    extra_versions: Callable[[], dict[str, str]] = dict
    finish: Callable[[Record, Path | None], int] = lambda record, output: 0

    @property
    def file_name(self) -> str:
        return f"{self.name}{SUFFIX}"

    def missing(self, record: Record) -> list[str]:
        """The labels of the cases that a record lacks."""
        kind = "cuda" if machine.is_gpu(record.run["device"]) else "cpu"
        return [case.label for case in record.missing(self.cases(kind, record.run["settings"]))]

    def new_record(self, platform: Platform, *, quick: bool = False) -> Record:
        device, versions = machine.describe(platform.device)
        settings = {"quick": quick, "threads": torch.get_num_threads(), **self.settings(platform)}
        return new_record(self.name, device, {**versions, **self.extra_versions()}, **settings)


def main(bench: Bench, arguments: Sequence[str] | None = None) -> int:
    """Measure, write the record, print its tables; the exit code of ``measure``, or 1 if nothing was measured."""
    parser = parser_of(bench)
    options = parser.parse_args(arguments)
    if options.threads < 1:
        parser.error(f"--threads: got {options.threads}; expected at least 1")
    if options.limit is not None and not options.limit > 0:
        parser.error(f"--limit: got {options.limit}; expected more than 0 seconds")
    machine.require_native(parser, options.device)
    platform = platform_of(options.device)
    with threads(options.threads if platform.kind == "cpu" else torch.get_num_threads()):
        record = bench.new_record(platform, quick=options.quick)
        cases = selected(bench.cases(platform.kind, record.run["settings"]), options)
        if not cases:
            parser.error("--cases, --implementations: got patterns that no case matches")
        cases = _resumed(parser, options.resume, bench, record, cases)
        until = None if options.limit is None else time.monotonic() + options.limit
        output = _output(options, bench, record)
        code = measure(bench, record, cases, Run(platform, options.quick, until), output, options.limit)
    if not record.rows:
        return code or 1
    try:
        table.show(bench.tables(record))
        print(f"\n{bench.headline(record)}.", flush=True)
    except ImportError as error:
        print(f"no tables here: {error}", flush=True)
    code = code or bench.finish(record, output)
    if output is not None:
        print(f"written: {output}", flush=True)
    return code


def parser_of(bench: Bench) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks {bench.name}", description=bench.about)
    device = "cuda" if torch.cuda.is_available() and "cuda" in bench.devices else bench.devices[0]
    parser.add_argument("--device", choices=bench.devices, default=device, help="default: cuda where there is one")
    parser.add_argument("--quick", action="store_true", help="few cases and samples, in about a minute")
    for name, what in (("cases", "labels of cases"), ("implementations", "names")):
        parser.add_argument(f"--{name}", nargs="+", metavar="PATTERN", help=f"{what}, such as '*bf16*'; default: all")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--threads", type=int, default=THREADS, help="on a processor (default: %(default)s)")
    parser.add_argument("--limit", type=float, help="seconds for the whole run; what does not fit is left out")
    parser.add_argument(
        "--out",
        type=Path,
        help=f"folder, or file, for {bench.file_name}; default: benchmarks/results/<device>, none for a part of a run",
    )
    parser.add_argument(
        "--resume",
        type=Path,
        nargs="?",
        const=machine.RESULTS,
        help="go on from an earlier record (a file or its folder; default: benchmarks/results/<device>), with these "
        "versions and settings",
    )
    return parser


def selected(cases: Sequence[Any], options: argparse.Namespace) -> list[Any]:
    """The part for these patterns; fewer implementations take less time."""
    found = []
    for case in cases:
        names = tuple(name for name in case.implementations if _matches(name, options.implementations))
        if options.no_compile:
            names = tuple(name for name in names if not name.startswith("torch.compile"))
        if not _matches(case.label, options.cases) or (case.implementations and not names):
            continue
        if names != case.implementations:
            share = len(names) / len(case.implementations)
            part = {"seconds": case.seconds * share} if hasattr(case, "seconds") else {}
            found.append(replace(case, implementations=names, **part))
        else:
            found.append(case)
    return found


def _matches(name: str, patterns: Iterable[str] | None) -> bool:
    return patterns is None or any(fnmatchcase(name, pattern) for pattern in patterns)


def _output(options: argparse.Namespace, bench: Bench, record: Record) -> Path | None:
    if options.out is not None:
        return options.out if options.out.suffix == SUFFIX else options.out / bench.file_name
    whole = not (options.quick or options.cases or options.implementations)
    return machine.folder_of(record.run["device"]) / bench.file_name if whole or options.resume else None


def _resumed(
    parser: argparse.ArgumentParser, path: Path | None, bench: Bench, record: Record, cases: Sequence[Any]
) -> list[Any]:
    """The cases that are left; all of them where nothing is resumed; ends the program if that cannot be."""
    if path is None:
        return list(cases)
    if path == machine.RESULTS:
        path = machine.folder_of(record.run["device"])
    path = path if path.suffix == SUFFIX else path / bench.file_name
    try:
        left = record.resume(load(path), cases)
    except (OSError, ValueError) as error:
        parser.error(f"--resume: {error}")
    print(f"taken over from {path}: {len(cases) - len(left)} cases; left: {len(left)}", flush=True)
    return left


def measure(
    bench: Bench, record: Record, cases: Sequence[Any], run: Run, output: Path | None, limit: float | None = None
) -> int:
    """Fill the record case by case, and write it after each.

    Returns:
        The exit code: 0, ``INTERRUPTED``, or ``OUT_OF_TIME``; the last two say on standard error what was kept.
    """
    done = 0
    out_of_time = False
    if record.rows and output is not None:
        record.save(output)
    try:
        for case in _progress(cases):
            seconds = getattr(case, "seconds", 0.0)
            if run.until is not None and time.monotonic() + seconds > run.until:
                out_of_time = True
                if seconds:
                    print(f"left out: {case.label}: it takes about {seconds:.0f} s", flush=True)
                continue
            found = bench.run(case, run)
            record.add(case.label, found, bench.key)
            done += 1
            if output is not None:
                record.save(output)
            for row in found:
                if "failure" in row:
                    print(f"not measured: {case.label}: {row['implementation'] or 'all'}: {row['failure']}", flush=True)
                    out_of_time |= row["failure"] == NO_TIME
    except KeyboardInterrupt:
        return _ended("interrupted", done, len(cases), record, output, INTERRUPTED)
    if out_of_time:
        return _ended(f"stopped at the limit of {limit:g} s", done, len(cases), record, output, OUT_OF_TIME)
    return 0


def _ended(why: str, done: int, total: int, record: Record, output: Path | None, code: int) -> int:
    kept = f"; {output} holds the cases that were done" if output is not None and record.rows else ""
    print(f"{why}: {done} of {total} cases{kept}", file=sys.stderr, flush=True)
    return code


def _progress(cases: Sequence[Any]) -> Iterator[Any]:
    """The cases, with a bar on a terminal; lines in a file, and where tqdm is not installed."""
    bar = None
    if sys.stderr.isatty():
        try:
            from tqdm import tqdm  # noqa: PLC0415 (a machine with a GPU may lack it)
        except ImportError:
            pass
        else:
            bar = tqdm(cases, unit="case")
    for index, case in enumerate(cases if bar is None else bar, start=1):
        started = time.monotonic()
        if bar is not None:
            bar.set_description(case.label)
        yield case
        if bar is None:
            print(f"[{index}/{len(cases)}] {case.label}: {time.monotonic() - started:.1f} s", flush=True)
