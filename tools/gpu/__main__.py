"""Command line: `python -m tools.gpu --help`.

Exit code 0: no stage failed, though one may not have run, with its reason. 1: one failed, or there was no time for it.
2: nothing could be run.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.harness.entry import exit_with
from benchmarks.harness.machine import describe_gpu, folder_of
from benchmarks.harness.records import NO_TIME
from tools.gpu.record import FAILED, NOT_RUN, PASSED, Outcome, Record, line, write
from tools.gpu.stages import LIMIT, STAGES, Context, Stage

SHORTEST = 10.0  # seconds: a stage is not begun with less
NOTHING_RAN = 2


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.gpu", description="Everything that needs a GPU.")
    parser.add_argument(
        "--stage",
        default=",".join(STAGES),
        help=f"one or several of {', '.join(STAGES)}, separated by commas; default: all",
    )
    parser.add_argument("--out", type=Path, help="folder for the results; default: benchmarks/results/<gpu>")
    parser.add_argument(
        "--limit", type=float, help=f"seconds for the whole run; default: none, {LIMIT:.0f} for each stage"
    )
    parser.add_argument("--quick", action="store_true", help="a benchmark of about a minute")
    parser.add_argument(
        "--resume", action="store_true", help="benchmarks resume from their records in benchmarks/results/<gpu>"
    )
    options = parser.parse_args(arguments)
    requested = options.stage.split(",")
    unknown = [name for name in requested if name not in STAGES]
    if unknown:
        parser.error(f"--stage: got {', '.join(map(repr, unknown))}; expected some of {', '.join(STAGES)}")
    if options.resume and options.quick:
        parser.error("--resume: got --quick too; expected one of them, as no quick run goes on from a whole one")
    if not torch.cuda.is_available():
        print(f"No CUDA device: torch {torch.__version__} sees none here, so nothing was run.", file=sys.stderr)
        return NOTHING_RAN
    gpu = describe_gpu()
    results_of_gpu = folder_of(gpu).resolve()
    folder = options.out.resolve() if options.out else results_of_gpu
    context = Context(gpu, folder, LIMIT, options.quick, results_of_gpu if options.resume else None)
    selected = {name: stage for name, stage in STAGES.items() if name in requested}
    records = run(selected, context, options.limit)
    print("", *map(line, records), f"written: {context.folder}", sep="\n")
    return int(any(record["status"] == FAILED or record["reason"] == NO_TIME for record in records))


def run(selected: Mapping[str, Stage], context: Context, limit: float | None = None) -> list[Record]:
    """Run the stages in order, and write each one's record as it ends. Only a failed build stops the rest."""
    started = time.monotonic()
    records: list[Record] = []
    obstacle: str | None = None
    for name, stage in selected.items():
        began = time.monotonic()
        left = LIMIT if limit is None else limit - (began - started)
        print(f"\n=== {name}", flush=True)
        if obstacle is not None or left < SHORTEST:
            outcome = Outcome(NOT_RUN, obstacle or NO_TIME)
        else:
            outcome = _guarded(stage, replace(context, limit=min(context.limit, left)))
        if name == "build" and outcome.status != PASSED:
            obstacle = f"the build {'failed' if outcome.status == FAILED else 'did not run'}"
        records.append(write(name, outcome, time.monotonic() - began, context.gpu, context.folder))
        print(line(records[-1]), flush=True)
    return records


def _guarded(stage: Stage, context: Context) -> Outcome:
    try:
        return stage(context)
    except Exception as error:
        return Outcome(FAILED, f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    exit_with(main)
