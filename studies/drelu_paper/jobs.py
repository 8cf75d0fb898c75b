"""The jobs of a study, what each waits for, and the function that does one, in whatever process."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from benchmarks.harness.files import DamagedFileError, set_aside
from dreluop.adaptive.evaluation.evaluating import evaluate
from studies.drelu_paper import records
from studies.drelu_paper.data import Split
from studies.drelu_paper.recipe import Evaluated, Recipe
from studies.drelu_paper.training import checkpoint
from studies.drelu_paper.training.parallel import Processes
from studies.drelu_paper.training_job import checkpoints, dataset_of, is_trained, train_recipe, trained

# They go through the model in one batch, which must fit a GPU.
MEASURED_SAMPLES = 500
# What the file of an evaluation between two attacks holds.
EVALUATED = ("right", "seconds", "cpu_seconds")


@dataclass(frozen=True)
class Folders:
    """Where a study reads and writes.

    Attributes:
        results: folder of records.
        work: folder of checkpoints, which all jobs must reach.
        root: folder of the data sets' files; None is ``data``.
        device: that every job uses.
        threads: of each job on the CPU.
        progress: show bars of the jobs.
    """

    results: Path
    work: Path
    root: Path | None = None
    device: str = "cpu"
    threads: int = 1
    progress: bool = True


@dataclass(frozen=True)
class Job:
    """Train a model, or evaluate a trained one.

    Attributes:
        name: unique in the study.
        task: what is done.
        after: names of the jobs that must be done before.
    """

    name: str
    task: Recipe | Evaluated
    after: tuple[str, ...] = ()


def jobs_of(runs: Sequence[Evaluated], folders: Folders) -> list[Job]:
    """The jobs that are left, each after those that it needs. What is done already, is not among them.

    A file that such a job would read, and that is damaged, is set aside under another name, which is printed; the job
    that writes it is then left too.
    """
    jobs: dict[str, Job] = {}

    @cache
    def needed(recipe: Recipe) -> tuple[str, ...]:
        for path, keys in checkpoints(recipe, folders.work).items():
            _set_aside_unless_whole(path, keys)
        if is_trained(recipe, folders.work):
            return ()
        name = f"train {recipe.name}"
        before = needed(recipe.start) if recipe.start else ()
        jobs[name] = Job(name, recipe, before)
        return (name,)

    for run in runs:
        if not _is_recorded(run, folders.results):
            _set_aside_unless_whole(_evaluated_file(run, folders), EVALUATED)
            after = {*needed(run.recipe), *(needed(run.baseline) if run.baseline else ())}
            name = f"evaluate {run.name}"
            jobs[name] = Job(name, run, tuple(sorted(after)))
    return list(jobs.values())


def _is_recorded(run: Evaluated, results: Path) -> bool:
    try:
        return records.find(run, results) is not None
    except DamagedFileError as error:
        _tell(_set_aside(error))
        return False


def _set_aside_unless_whole(path: Path, keys: Sequence[str]) -> None:
    try:
        if path.exists():
            checkpoint.load(path, keys)
    except DamagedFileError as error:
        _tell(_set_aside(error))


def _set_aside(error: DamagedFileError) -> str:
    aside = set_aside(error.path)
    return f"{error}; set aside" + (f" as {aside.name}" if aside else "")


def _evaluated_file(run: Evaluated, folders: Folders) -> Path:
    return folders.work / run.recipe.name / f"evaluated-{run.name.rsplit('-', 1)[1]}.pt"


def do(job: Job, folders: Folders, processes: Processes | None = None) -> None:
    """Do one job, here. It can be done again after it was killed: what it had finished is not done twice.

    Raises:
        RuntimeError: a file that it reads is damaged; the file is set aside, so that the next run makes it anew.
    """
    try:
        _do(job, folders, processes)
    except DamagedFileError as error:
        raise RuntimeError(f"{_set_aside(error)}; the same command makes it anew") from error


def _do(job: Job, folders: Folders, processes: Processes | None) -> None:
    if folders.device == "cpu":
        torch.set_num_threads(folders.threads)
    device = torch.device(folders.device)
    if isinstance(job.task, Recipe):
        train_recipe(
            job.task, folders.work, folders.root, device=device, processes=processes, progress=folders.progress
        )
        return
    processes = processes or Processes()
    try:
        if processes.rank == 0:
            _evaluate(job.task, folders, device)
    finally:
        processes.wait()


def _evaluate(run: Evaluated, folders: Folders, device: torch.device) -> None:
    model, warm_up, history = trained(run.recipe, folders.work, folders.root, device)
    baseline = trained(run.baseline, folders.work, folders.root, device)[0] if run.baseline else None
    dataset = dataset_of(run.recipe.data, folders.root)
    test = dataset.test.first(run.attacks.samples)
    measured = min(run.attacks.samples, MEASURED_SAMPLES, len(dataset.validation))
    file = _evaluated_file(run, folders)
    evaluation = evaluate(
        model,
        baseline,
        Split(test.x.to(device), test.y.to(device)),
        dataset.validation.first(measured).x.to(device),
        run.attacks,
        file=file,
        report=lambda attack: _tell(f"{run.recipe.name}: {attack}") if folders.progress else None,
    )
    records.save(records.record_of(run, warm_up, history, evaluation, device, folders.threads), folders.results)
    file.unlink(missing_ok=True)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
