"""The command line of the experiments."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from benchmarks.harness.files import folder_argument, save_document
from benchmarks.harness.machine import RESULTS, slug
from benchmarks.harness.table import console, markdown, printable
from studies.drelu_paper import configuration, engines, records
from studies.drelu_paper.data import ROOT
from studies.drelu_paper.jobs import Folders, Job, do, jobs_of
from studies.drelu_paper.paper.tables import NUMBERS
from studies.drelu_paper.report.frame import BASIS, blocks, masked, older_note
from studies.drelu_paper.report.pages import FOLDER_NAME
from studies.drelu_paper.report.tables import LEGEND, adaptive_table, cost_table, table
from studies.drelu_paper.statistics import document as documents
from studies.drelu_paper.statistics import frames, tables
from studies.drelu_paper.training import parallel

FOLDER = RESULTS / FOLDER_NAME
WORK = Path("build/robustness")
FAILED, USAGE, INTERRUPTED = 1, 2, 130
ALL = "all"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        code: int = options.run(options)
    except BrokenPipeError:
        raise
    except (OSError, TypeError, ValueError, RuntimeError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return USAGE
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
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last epochs and attacks", file=sys.stderr)
        return INTERRUPTED
    for failure in failures:
        print(f"failed: {failure.job}: {failure.reason}", file=sys.stderr)
    return FAILED if failures else 0


def _by_engine(jobs: Sequence[Job], folders: Folders, options: argparse.Namespace) -> list[engines.Failure]:
    engine = engines.ENGINES[options.engine]
    return engine(jobs, partial(do, folders=folders), options.jobs, folders.device)


def _distributed(jobs: Sequence[Job], folders: Folders) -> list[engines.Failure]:
    """Every process of torchrun does the same jobs in the same order, each its share of every batch."""
    with parallel.of_torchrun() as processes:
        if folders.device == "cuda":
            torch.cuda.set_device(processes.local)
        return engines.serial(jobs, partial(do, folders=folders, processes=processes))


def show(options: argparse.Namespace) -> int:
    """Print a study's tables."""
    study = configuration.read(options.configuration)
    found = _found(study, options.results)
    shown = [table(study.title, found, study.columns)]
    shown += [adaptive_table(study.title, found)] if options.adaptive else []
    shown += [cost_table(study.title, found)] if options.cost else []
    for one in shown:
        if options.markdown:
            print(f"**{one.title}**\n\n{markdown(one)}\n")
        else:
            console().print(printable(one))
    print(f"{len(found)} of {len(study.runs)} runs. {LEGEND}")
    return 0


def plot(options: argparse.Namespace) -> int:
    """Draw a study's pictures."""
    from studies.drelu_paper.report.pictures import draw  # noqa: PLC0415 (matplotlib is slow to import)

    study = configuration.read(options.configuration)
    found = _found(study, options.results)
    for kind in study.pictures or ("balancer",):
        path = options.output / f"{study.name}-{kind.replace('_', '-')}.png"
        draw(study, kind, found, path)
        print(f"drawn: {path}")
    return 0


def stats(options: argparse.Namespace) -> int:
    """The statistics, of a paper's table, a CSV file, or a study by its name."""
    if (options.subject is None) == (options.paper_table is None):
        raise ValueError("expected either a study or a CSV file, or --paper-table")
    document = _document(options)
    for one in tables.all_tables(document):
        console().print(printable(one))
    if options.output:
        _write(document, options.output)
    return 0


def _document(options: argparse.Namespace) -> documents.Document:
    if options.subject is None:
        numbers = NUMBERS if options.paper_table == ALL else [int(options.paper_table)]
        return documents.of_paper(numbers, options.alpha, options.missing)
    if options.subject.suffix == ".csv":
        results, name, basis = _csv(options.subject), options.subject.stem, documents.ACCURACIES
    else:
        study = configuration.read(options.subject)
        found = _found(study, options.records)
        print(
            f"{study.name} is ranked by the adaptive worst of {len(found)} runs{older_note(found)}. Inputs with zero "
            f"gradient, of which the paper's attacks say nothing: {masked(found) or 'none'}"
        )
        results, name, basis = blocks(found), study.name, BASIS
    accuracies = frames.blocks_by_methods(results)
    return documents.of_results(accuracies, name, options.alpha, options.missing, basis)


def _csv(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: no valid CSV: {error}") from error


def _write(document: documents.Document, folder: Path) -> None:
    from studies.drelu_paper.statistics import picture  # noqa: PLC0415 (matplotlib is slow to import)

    save_document(document, folder / documents.FILE_NAME)
    written = [folder / documents.FILE_NAME]
    for subject in dict.fromkeys(one["subject"] for one in document["comparisons"]):
        shown = [one for one in document["comparisons"] if one["subject"] == subject and one["nemenyi"]]
        if shown:  # Two methods have no diagram.
            written.append(folder / f"critical-difference-{slug(subject)}.png")
            picture.write(picture.figure_of(shown), written[-1])
    print("".join(f"written: {path}\n" for path in written), end="")


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
    parser = argparse.ArgumentParser(prog="python -m studies.drelu_paper", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="run|table|plot|stats")

    def command(name: str, does: Callable[[argparse.Namespace], int], text: str) -> Callable[..., argparse.Action]:
        made = commands.add_parser(name, help=text)
        made.set_defaults(run=does)
        return made.add_argument

    add = command("run", run, "do what is left of studies; the same command goes on after a break")
    add("configurations", nargs="+", metavar="CONFIG", help="a YAML file, or its name in configs/")
    add("--engine", choices=list(engines.ENGINES), default="processes", help="who does the jobs")
    add("--jobs", type=_positive, default=2, help="jobs at a time (default 2); Ray: CPUs of a local cluster")
    add("--threads", type=_positive, default=1, help="threads of each job on the CPU (default 1)")
    add("--device", type=_device, default="cuda" if torch.cuda.is_available() else "cpu")
    add("--distributed", action="store_true", help="under torchrun: train each model by all processes")
    add("--work", type=folder_argument, default=WORK, help=f"folder of checkpoints (default {WORK})")
    add("--data", type=folder_argument, default=ROOT, help=f"folder of the data sets' files (default {ROOT})")
    add("--list", action="store_true", help="only say which jobs are left")
    add("--quiet", action="store_true", help="no bars within the jobs")
    _add_records(add, "--results")
    add = command("table", show, "a study's table, in the paper's form, with the honest columns")
    add("configuration", metavar="CONFIG", help="a YAML file, or its name in configs/")
    add("--adaptive", action="store_true", help="also what the adaptive worst is made of")
    add("--cost", action="store_true", help="also epochs and processor time")
    add("--markdown", action="store_true", help="for a document")
    _add_records(add, "--results")
    add = command("plot", plot, "a study's pictures")
    add("configuration", metavar="CONFIG", help="a YAML file, or its name in configs/")
    add("--output", type=folder_argument, default=WORK, help=f"folder (default {WORK})")
    _add_records(add, "--results")
    add = command("stats", stats, "ANOVA, Friedman and Nemenyi over a study or a table of the paper")
    add("subject", type=Path, nargs="?", help="a study, or a CSV file with a block, a method and an accuracy per row")
    add("--paper-table", choices=[*map(str, NUMBERS), ALL], help="instead: a table that the paper prints")
    add("--alpha", type=float, default=0.05, help="level of significance (default: 0.05)")
    add(
        "--missing", choices=frames.MISSING, default="error",
        help="where a method has no accuracy in a block: stop (default), or leave the block out and say so",
    )  # fmt: skip
    add("--output", type=folder_argument, help=f"folder for {documents.FILE_NAME} and the critical-difference diagrams")
    _add_records(add, "--records")
    return parser


def _add_records(add: Callable[..., argparse.Action], name: str) -> None:
    add(name, type=folder_argument, default=FOLDER, help=f"folder of records (default {FOLDER})")
