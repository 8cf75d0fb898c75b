"""The jobs of a study, what each waits for, and the function that does one, in whatever process."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch

from benchmarks.harness.files import DamagedFileError, set_aside
from dreluop.adaptive import Outcomes, evaluate
from dreluop.adaptive.evaluation.evaluating import MEASURED_SAMPLES
from studies.drelu_paper import records
from studies.drelu_paper.recipe import Evaluated, Recipe
from studies.drelu_paper.trained_models import checkpoints, dataset_of, result_file, train_recipe, trained
from studies.drelu_paper.training import checkpoint
from studies.drelu_paper.training.parallel import Processes

# What the file of an evaluation between two attacks holds.
EVALUATED = ("right", "distances", "seconds", "cpu_seconds")


@dataclass(frozen=True)
class Folders:
    """Where a study reads and writes, and by what its jobs run.

    ``results`` has the records, ``work`` the checkpoints, ``root`` the files of the data sets (None is ``data``).
    """

    results: Path
    work: Path
    root: Path | None = None
    device: str = "cpu"
    threads: int = 1
    progress: bool = True


@dataclass(frozen=True)
class Job:
    """Train a model, or evaluate a trained one, after the jobs with these names."""

    name: str
    task: Recipe | Evaluated
    after: tuple[str, ...] = ()


def jobs_of(runs: Sequence[Evaluated], folders: Folders) -> list[Job]:
    """The jobs that are left, each after those that it needs. What is done already is not among them.

    A damaged file that such a job would read is set aside under another name, which is printed; the job that writes it
    is then left too.
    """
    jobs: dict[str, Job] = {}

    @cache
    def needed(recipe: Recipe) -> tuple[str, ...]:
        for path, keys in checkpoints(recipe, folders.work).items():
            _set_aside_unless_whole(path, keys)
        if result_file(recipe, folders.work).exists():
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
    processes = processes or Processes()
    if folders.device == "cpu":
        torch.set_num_threads(folders.threads)
    device = torch.device(folders.device)
    try:
        if isinstance(job.task, Recipe):
            train_recipe(
                job.task, folders.work, folders.root, device=device, processes=processes, progress=folders.progress
            )
            return
        try:
            if processes.rank == 0:
                _evaluate(job.task, folders, device)
        finally:
            processes.wait()
    except DamagedFileError as error:
        raise RuntimeError(f"{_set_aside(error)}; the same command makes it anew") from error


@dataclass
class _Kept(Outcomes):
    """Outcomes written after every attack; each attack is reported as it begins."""

    file: Path = field(default_factory=Path)
    label: str = ""

    def begins(self, name: str) -> None:
        if self.label:
            _tell(f"{self.label}: {name}")

    def ended(self) -> None:
        checkpoint.save({key: getattr(self, key) for key in EVALUATED}, self.file)


def _evaluate(run: Evaluated, folders: Folders, device: torch.device) -> None:
    model, warm_up, history = trained(run.recipe, folders.work, folders.root, device)
    baseline = trained(run.baseline, folders.work, folders.root, device)[0] if run.baseline else None
    dataset = dataset_of(run.recipe.data, folders.root)
    test = dataset.test.first(run.attacks.samples)
    validation = dataset.validation.first(min(run.attacks.samples, MEASURED_SAMPLES, len(dataset.validation)))
    file, label = _evaluated_file(run, folders), run.recipe.name if folders.progress else ""
    outcomes = _Kept(file=file, label=label)
    budget = run.attacks.budget
    if file.exists():
        with checkpoint.reading(file):
            outcomes = _Kept(**checkpoint.load(file), file=file, label=label)
            outcomes.check(len(test.x), min(budget.cw_samples, len(test.x)), test.x.dtype)
    evaluation = evaluate(
        model,
        test.x.to(device),
        test.y.to(device),
        run.attacks.eps,
        budget=budget,
        measured_on=validation.x.to(device),
        baseline=baseline,
        outcomes=outcomes,
    )
    if evaluation.left_out:
        raise RuntimeError(f"attacks left out: {'; '.join(evaluation.left_out.values())}")
    records.save(records.record_of(run, warm_up, history, evaluation, device, folders.threads), folders.results)
    file.unlink(missing_ok=True)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
