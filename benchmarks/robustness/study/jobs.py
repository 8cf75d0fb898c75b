"""The jobs of a study, what each waits for, and the function that does one, in whatever process."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.robustness.data import Split
from benchmarks.robustness.evaluation.judge import judge
from benchmarks.robustness.study import records
from benchmarks.robustness.study.recipe import Judged, Recipe
from benchmarks.robustness.study.training_job import dataset_of, is_trained, train_recipe, trained
from benchmarks.robustness.training.parallel import Processes

# They go through the model in one batch, which must fit a card.
MEASURED_SAMPLES = 500


@dataclass(frozen=True)
class Places:
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
    """Train a model, or judge a trained one.

    Attributes:
        name: unique in the study.
        task: what is done.
        after: names of the jobs that must be done before.
    """

    name: str
    task: Recipe | Judged
    after: tuple[str, ...] = ()


def jobs_of(runs: Sequence[Judged], places: Places) -> list[Job]:
    """The jobs that are left, each after those that it needs. What is done already, is not among them."""
    jobs: dict[str, Job] = {}

    def needed(recipe: Recipe) -> tuple[str, ...]:
        if is_trained(recipe, places.work):
            return ()
        name = f"train {recipe.name}"
        if name not in jobs:
            before = needed(recipe.start) if recipe.start else ()
            jobs[name] = Job(name, recipe, before)
        return (name,)

    for run in runs:
        if records.find(run, places.results) is None:
            after = {*needed(run.recipe), *(needed(run.twin) if run.twin else ())}
            name = f"judge {run.name}"
            jobs[name] = Job(name, run, tuple(sorted(after)))
    return list(jobs.values())


def do(job: Job, places: Places, processes: Processes | None = None) -> None:
    """Do one job, here. It can be done again after it was killed: what it had finished is not done twice."""
    if places.device == "cpu":
        torch.set_num_threads(places.threads)
    device = torch.device(places.device)
    if isinstance(job.task, Recipe):
        train_recipe(job.task, places.work, places.root, device=device, processes=processes, progress=places.progress)
        return
    processes = processes or Processes()
    try:
        if processes.rank == 0:
            _judge(job.task, places, device)
    finally:
        processes.wait()


def _judge(run: Judged, places: Places, device: torch.device) -> None:
    model, warm_up, history = trained(run.recipe, places.work, places.root, device)
    twin = trained(run.twin, places.work, places.root, device)[0] if run.twin else None
    dataset = dataset_of(run.recipe.data, places.root)
    test = dataset.test.first(run.attacks.samples)
    measured = min(run.attacks.samples, MEASURED_SAMPLES, len(dataset.validation))
    file = places.work / run.recipe.name / f"judged-{run.name.rsplit('-', 1)[1]}.pt"
    judgement = judge(
        model,
        twin,
        Split(test.x.to(device), test.y.to(device)),
        dataset.validation.first(measured).x.to(device),
        run.attacks,
        file=file,
        report=lambda attack: _tell(f"{run.recipe.name}: {attack}") if places.progress else None,
    )
    records.save(records.record_of(run, warm_up, history, judgement, device, places.threads), places.results)
    file.unlink(missing_ok=True)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
