"""The loop that all suites share: one case after another, the file written after each, a bar, a limit, Ctrl-C."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.harness.machine import save

INTERRUPTED = 130  # as a shell reports SIGINT
OUT_OF_TIME = 3
NO_TIME = "no time was left"  # the reason of what a case had to leave out

Item = TypeVar("Item")
# Gives the rows of a case, and what of it could not be measured.
Measure = Callable[[Item], tuple[Sequence[Any], Sequence[Any]]]


def run_cases(
    document: Any,
    cases: Sequence[Item],
    measure: Measure[Item],
    output: Path | None,
    *,
    name: Callable[[Item], str],
    limit: float | None = None,
    seconds: Callable[[Item], float] | None = None,
) -> int:
    """Fill the document case by case, and write it after each, so that whatever ends the run leaves a valid file.

    Args:
        document: has ``rows`` and ``complete``, and ``failures`` where a case can have some; in ``missing``, where it
            has that, stand at any time the names of the cases that are not done. Rows that it has already are of cases
            that were done before, and are written at once.
        cases: in this order.
        measure: gives the rows of a case.
        output: the file; None to write none.
        name: what the bar calls a case.
        limit: seconds after which no other case is begun.
        seconds: what a case takes, about; one that would not end before the limit is left out, and others still tried.

    Returns:
        The exit code: 0, ``INTERRUPTED``, or ``OUT_OF_TIME``; the last two say on standard error what was kept.
    """
    began = time.monotonic()
    done = 0
    out_of_time = False
    missing: list[str] = [name(case) for case in cases]
    document["complete"] = not cases
    if "missing" in document:
        document["missing"] = missing
    # What was taken over from an earlier run (resuming.py).
    kept = bool(document["rows"])
    if kept and output is not None:
        save(document, output)
    try:
        for case in _bar(cases, name):
            needed = 0.0 if seconds is None else seconds(case)
            if limit is not None and time.monotonic() - began + needed > limit:
                out_of_time = True
                if seconds is None:
                    break
                print(f"left out: {name(case)}: it takes about {needed:.0f} s", flush=True)
                continue
            rows, failures = measure(case)
            document["rows"] += rows
            if failures:
                document["failures"] += failures
            done += 1
            missing.remove(name(case))
            out_of_time |= any(failure["reason"] == NO_TIME for failure in failures)
            document["complete"] = done == len(cases) and not out_of_time
            kept = True
            if output is not None:
                save(document, output)
            for failure in failures:
                print(
                    f"not measured: {name(case)}: {failure['implementation'] or 'all'}: {failure['reason']}", flush=True
                )
    except KeyboardInterrupt:
        return _ended("interrupted", done, len(cases), output if kept else None, INTERRUPTED)
    if out_of_time:
        return _ended(f"stopped at the limit of {limit:g} s", done, len(cases), output if kept else None, OUT_OF_TIME)
    return 0


def _ended(why: str, done: int, total: int, output: Path | None, code: int) -> int:
    kept = "" if output is None else f"; {output} holds the cases that were done"
    print(f"{why}: {done} of {total} cases{kept}", file=sys.stderr, flush=True)
    return code


def _bar(cases: Sequence[Item], name: Callable[[Item], str]) -> Iterator[Item]:
    """The cases, with a bar on a terminal; lines in a file, and where tqdm is not installed."""
    bar = None
    if sys.stderr.isatty():
        try:
            from tqdm import tqdm  # noqa: PLC0415 (a machine with a GPU may lack it)
        except ImportError:
            pass
        else:
            bar = tqdm(total=len(cases), unit="case")
    try:
        for index, case in enumerate(cases, start=1):
            if bar is not None:
                bar.set_description(name(case))
            started = time.monotonic()
            yield case
            if bar is not None:
                bar.update()
            else:
                print(f"[{index}/{len(cases)}] {name(case)}: {time.monotonic() - started:.1f} s", flush=True)
    finally:
        if bar is not None:
            bar.close()
