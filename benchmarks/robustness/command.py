"""The command line of the experiments."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks.harness.files import folder_argument
from benchmarks.harness.machine import RESULTS
from benchmarks.harness.table import console, markdown, printable
from benchmarks.robustness.data.loading import ROOT
from benchmarks.robustness.reporting.blocks import BASIS, blocks, masked
from benchmarks.robustness.reporting.frame import older_note
from benchmarks.robustness.reporting.pages import FOLDER_NAME
from benchmarks.robustness.reporting.tables import LEGEND, adaptive_table, cost_table, table
from benchmarks.robustness.statistics import command as statistics
from benchmarks.robustness.study import configuration, engines, records
from benchmarks.robustness.study.jobs import Folders, Job, do, jobs_of
from benchmarks.robustness.training import parallel

FOLDER = RESULTS / FOLDER_NAME
WORK = Path("build/robustness")
FAILED, INTERRUPTED, TERMINATED = 1, 130, 143


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        code: int = options.run(options)
    except BrokenPipeError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    return code


def run(options: argparse.Namespace) -> int:
    """Do what is left of the studies, and say what failed."""
    studies = [configuration.read(name) for name in options.configurations]
    runs = list(dict.fromkeys(run for study in studies for run in study.runs))
    folders = Folders(
        options.results.resolve(), options.work.resolve(), options.data.resolve(), options.device,
        options.threads, progress=not options.quiet,
    )  # fmt: skip
    jobs = jobs_of(runs, folders)
    done = sum(records.find(run, folders.results) is not None for run in runs)
    print(f"{len(runs)} runs, {done} done; {len(jobs)} jobs left", flush=True)
    if not jobs:
        committed = ", which come with the source" if options.results == FOLDER else ""
        print(f"all records are in {options.results}{committed}; to make new ones, name another folder: --results DIR")
    if options.list or not jobs:
        print("".join(f"{job.name}\n" for job in jobs), end="")
        return 0
    try:
        failures = _distributed(jobs, folders) if options.distributed else _by_engine(jobs, folders, options)
    except KeyboardInterrupt as error:
        terminated = isinstance(error, engines.Terminated)
        word = "terminated" if terminated else "interrupted"
        print(f"{word}; the same command goes on from the last epochs and attacks", file=sys.stderr)
        return TERMINATED if terminated else INTERRUPTED
    for failure in failures:
        print(f"failed: {failure.job}: {failure.reason}", file=sys.stderr)
    return FAILED if failures else 0


def _by_engine(jobs: Sequence[Job], folders: Folders, options: argparse.Namespace) -> list[engines.Failure]:
    engine = engines.ENGINES[options.engine]
    return engine(jobs, partial(do, folders=folders), options.jobs, folders.device)


def _distributed(jobs: Sequence[Job], folders: Folders) -> list[engines.Failure]:
    """Every process of torchrun does the same jobs in the same order, each its share of every batch."""
    processes = parallel.of_torchrun()
    if folders.device == "cuda":
        torch.cuda.set_device(processes.local)
    return engines.in_turn(jobs, partial(do, folders=folders, processes=processes))


def show(options: argparse.Namespace) -> int:
    """Print a study's tables."""
    study = configuration.read(options.configuration)
    found = _found(study, options.results)
    tables = [table(study.title, found, study.columns)]
    tables += [adaptive_table(study.title, found)] if options.adaptive else []
    tables += [cost_table(study.title, found)] if options.cost else []
    for one in tables:
        if options.markdown:
            print(f"**{one.title}**\n\n{markdown(one)}\n")
        else:
            console().print(printable(one))
    print(f"{len(found)} of {len(study.runs)} runs. {LEGEND}")
    return 0


def plot(options: argparse.Namespace) -> int:
    """Draw a study's pictures."""
    from benchmarks.robustness.reporting.pictures import draw  # noqa: PLC0415 (matplotlib is slow to import)

    study = configuration.read(options.configuration)
    found = _found(study, options.results)
    source = f"{options.results.name}, study {study.name}"
    for kind in study.pictures or ("balancer",):
        path = options.output / f"{study.name}-{kind.replace('_', '-')}.png"
        draw(study, kind, found, path, source)
        print(f"drawn: {path}")
    return 0


def stats(options: argparse.Namespace) -> int:
    """The statistics, of a paper's table, a CSV file, or a study by its name."""
    if options.results is None or options.results.suffix == ".csv":
        return statistics.run(options)
    study = configuration.read(options.results)
    found = _found(study, options.records)
    print(
        f"{study.name} is ranked by the adaptive worst of {len(found)} runs{older_note(found)}. Inputs with zero "
        f"gradient, of which the paper's attacks say nothing: {masked(found) or 'none'}"
    )
    return statistics.run(options, lambda _: blocks(found), BASIS)


def _found(study: configuration.Study, folder: Path) -> list[records.Record]:
    found = records.found(study.runs, folder)
    if not found:
        raise FileNotFoundError(f"{folder} has no record of {study.name}; run it first: run {study.name}")
    return found


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}; expected a whole number of at least 1")
    return int(text)


def _device(text: str) -> str:
    try:
        kind = torch.device(text).type
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"got {text!r}; expected a device of torch, such as cpu or cuda") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError(f"got {text!r}; this machine has no GPU that torch can use")
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.robustness", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="run|table|plot|stats")
    runner = commands.add_parser("run", help="do what is left of studies; the same command goes on after a break")
    runner.add_argument("configurations", nargs="+", metavar="CONFIG", help="a YAML file, or its name in configs/")
    runner.add_argument("--engine", choices=list(engines.ENGINES), default="processes", help="who does the jobs")
    runner.add_argument(
        "--jobs", type=_positive, default=2, help="jobs at a time (default 2); Ray: CPUs of a local cluster"
    )
    runner.add_argument("--threads", type=_positive, default=1, help="threads of each job on the CPU (default 1)")
    runner.add_argument("--device", type=_device, default="cuda" if torch.cuda.is_available() else "cpu")
    runner.add_argument("--distributed", action="store_true", help="under torchrun: train each model by all processes")
    runner.add_argument("--work", type=folder_argument, default=WORK, help=f"folder of checkpoints (default {WORK})")
    runner.add_argument(
        "--data", type=folder_argument, default=ROOT, help=f"folder of the data sets' files (default {ROOT})"
    )
    runner.add_argument("--list", action="store_true", help="only say which jobs are left")
    runner.add_argument("--quiet", action="store_true", help="no bars within the jobs")
    runner.set_defaults(run=run)
    shower = commands.add_parser("table", help="a study's table, in the paper's form, with the honest columns")
    shower.add_argument("--adaptive", action="store_true", help="also what the adaptive worst is made of")
    shower.add_argument("--cost", action="store_true", help="also epochs and processor time")
    shower.add_argument("--markdown", action="store_true", help="for a document")
    shower.set_defaults(run=show)
    drawer = commands.add_parser("plot", help="a study's pictures")
    drawer.add_argument("--output", type=folder_argument, default=WORK, help=f"folder (default {WORK})")
    drawer.set_defaults(run=plot)
    for one in (shower, drawer):
        one.add_argument("configuration", metavar="CONFIG", help="a YAML file, or its name in configs/")
    for one in (runner, shower, drawer):
        one.add_argument(
            "--results", type=folder_argument, default=FOLDER, help=f"folder of records (default {FOLDER})"
        )
    tester = commands.add_parser("stats", help="ANOVA, Friedman and Nemenyi over a study or a table of the paper")
    statistics.add_arguments(tester)
    tester.add_argument(
        "--records", type=folder_argument, default=FOLDER, help=f"folder of a study's records (default {FOLDER})"
    )
    tester.set_defaults(run=stats)
    return parser
