"""Command line: `python -m benchmarks.gpu --help`.

Exit code 0: no stage failed (one that could not run here says so); 1: one failed, or there was no time for it; 2:
nothing could be run.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.gpu.record import FAILED, NOT_RUN, PASSED, Outcome, Record, line, record_of, write
from benchmarks.gpu.stages import STAGES, Context, Stage
from benchmarks.harness.entry import exit_with
from benchmarks.harness.machine import commit, describe_gpu, folder_of, gpu_versions
from benchmarks.harness.records import NO_TIME

STAGE_LIMIT = 530.0  # seconds: under nine minutes
LEAST = 10.0  # seconds under which a stage is not begun
NOTHING_RAN = 2


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="Everything that needs a GPU.")
    parser.add_argument(
        "--stage",
        default=",".join(STAGES),
        help=f"one or several of {', '.join(STAGES)}, separated by commas; default: all",
    )
    parser.add_argument("--out", type=Path, help="folder for the results; default: benchmarks/results/<gpu>")
    parser.add_argument("--limit", type=float, help="seconds for the whole run; default: none, 530 for each stage")
    parser.add_argument("--quick", action="store_true", help="a benchmark of about a minute")
    parser.add_argument(
        "--resume", action="store_true", help="benchmarks go on from their files in benchmarks/results/<gpu>"
    )
    options = parser.parse_args(arguments)
    asked = options.stage.split(",")
    unknown = [name for name in asked if name not in STAGES]
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
    resume = results_of_gpu if options.resume else None
    context = Context(gpu, folder, STAGE_LIMIT, options.quick, resume)
    selected = {name: stage for name, stage in STAGES.items() if name in asked}
    records = run(selected, context, options.limit)
    print("\n" + "\n".join(map(line, records)))
    print(f"written: {context.folder}")
    return int(any(record["status"] == FAILED or record["reason"] == NO_TIME for record in records))


def run(selected: Mapping[str, Stage], context: Context, limit: float | None = None) -> list[Record]:
    """Run the stages in order, and write each one's record as it ends; only a failed build stops the rest."""
    started = time.monotonic()
    known, measured = gpu_versions(), commit()
    records: list[Record] = []
    obstacle: str | None = None
    for name, stage in selected.items():
        began = time.monotonic()
        left = STAGE_LIMIT if limit is None else limit - (began - started)
        print(f"\n=== {name}", flush=True)
        if obstacle is not None:
            outcome = Outcome(NOT_RUN, obstacle)
        elif left < LEAST:
            outcome = Outcome(NOT_RUN, NO_TIME)
        else:
            outcome = _guarded(stage, replace(context, limit=min(context.limit, left)))
        if name == "build" and outcome.status != PASSED:
            obstacle = f"the build {'failed' if outcome.status == FAILED else 'did not run'}"
        record = record_of(name, outcome, time.monotonic() - began, context.gpu, known, measured)
        write(record, context.folder)
        print(line(record), flush=True)
        records.append(record)
    return records


def _guarded(stage: Stage, context: Context) -> Outcome:
    try:
        return stage(context)
    except Exception as error:
        return Outcome(FAILED, f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    exit_with(main)
