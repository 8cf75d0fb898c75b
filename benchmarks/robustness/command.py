"""The command line of the experiments."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks.kernels.results import RESULTS
from benchmarks.robustness.study import configuration, engines, records
from benchmarks.robustness.study.jobs import Job, Places, do, jobs_of
from benchmarks.robustness.training import parallel

FOLDER = RESULTS / "robustness"
WORK = Path("build/robustness")
FAILED, INTERRUPTED = 1, 130


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        code: int = options.run(options)
    except (FileNotFoundError, ValueError, RuntimeError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    return code


def run(options: argparse.Namespace) -> int:
    """Do what is left of the studies, and say what failed."""
    studies = [configuration.read(name) for name in options.configurations]
    runs = list(dict.fromkeys(run for study in studies for run in study.runs))
    places = Places(
        options.results.resolve(), options.work.resolve(), options.data and options.data.resolve(), options.device,
        options.threads, progress=not options.quiet,
    )  # fmt: skip
    jobs = jobs_of(runs, places)
    print(f"{len(runs)} runs, {len(records.found(runs, places.results))} done; {len(jobs)} jobs left", flush=True)
    if options.list:
        print("".join(f"{job.name}\n" for job in jobs), end="")
        return 0
    try:
        failures = _distributed(jobs, places) if options.distributed else _by_engine(jobs, places, options)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last epochs and attacks", file=sys.stderr)
        return INTERRUPTED
    for failure in failures:
        print(f"failed: {failure.job}: {failure.reason}", file=sys.stderr)
    return FAILED if failures else 0


def _by_engine(jobs: Sequence[Job], places: Places, options: argparse.Namespace) -> list[engines.Failure]:
    engine = engines.ENGINES[options.engine]
    return engine(jobs, partial(do, places=places), options.jobs)


def _distributed(jobs: Sequence[Job], places: Places) -> list[engines.Failure]:
    """Every process of torchrun does the same jobs in the same order, each its share of every batch."""
    processes = parallel.of_torchrun()
    if places.device == "cuda":
        torch.cuda.set_device(processes.local)
    return engines.in_turn(jobs, partial(do, places=places, processes=processes))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.robustness", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="run|table|plot|stats")
    runner = commands.add_parser("run", help="do what is left of studies; the same command goes on after a break")
    runner.add_argument("configurations", nargs="+", metavar="CONFIG", help="a YAML file, or its name in configs/")
    runner.add_argument("--engine", choices=list(engines.ENGINES), default="processes", help="who does the jobs")
    runner.add_argument("--jobs", type=int, default=2, help="jobs at a time (default 2); Ray: CPUs of a local cluster")
    runner.add_argument("--threads", type=int, default=1, help="threads of each job on the CPU (default 1)")
    runner.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    runner.add_argument("--distributed", action="store_true", help="under torchrun: train each model by all processes")
    runner.add_argument("--work", type=Path, default=WORK, help=f"folder of checkpoints (default {WORK})")
    runner.add_argument("--data", type=Path, help="folder of the data sets' files (default data)")
    runner.add_argument("--list", action="store_true", help="only say which jobs are left")
    runner.add_argument("--quiet", action="store_true", help="no bars within the jobs")
    runner.set_defaults(run=run)
    for one in (runner,):
        one.add_argument("--results", type=Path, default=FOLDER, help=f"folder of records (default {FOLDER})")
    return parser
