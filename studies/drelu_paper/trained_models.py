"""A model as its recipe says: trained, or read from the work folder where it was trained before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from dreluop.surgery import calibrate_caps
from studies.drelu_paper import data, models
from studies.drelu_paper.configuration import FOLDER as CONFIGURATIONS
from studies.drelu_paper.recipe import DataRecipe, Recipe
from studies.drelu_paper.training import History, checkpoint, train
from studies.drelu_paper.training.loop import STORED
from studies.drelu_paper.training.parallel import Processes

CALIBRATION_SAMPLES = 512
PARTS = WARM_UP, TRAINING = ("warm-up", "training")
# What the file of a trained model holds.
RESULT = ("model", "warm_up", "history")


def train_recipe(
    recipe: Recipe,
    work: Path,
    root: Path | None = None,
    *,
    device: torch.device | None = None,
    processes: Processes | None = None,
    progress: bool = True,
) -> None:
    """Train the model, or go on where a killed run stopped. What it starts from must have been trained.

    Its checkpoints are in a folder of its name in ``work``; ``root`` has the files of the data sets.
    """
    if result_file(recipe, work).exists():
        return
    folder = work / recipe.name
    processes = processes or Processes()
    device = device or torch.device("cpu")
    dataset = dataset_of(recipe.data, root)
    start = _built(recipe, root) if recipe.start is None else trained(recipe.start, work, root)[0]
    model = start.to(device)

    def run(part: str, warm_up: int | None) -> History:
        config = recipe.training
        if warm_up is not None:
            config = replace(config, balancer=0.0, epochs=warm_up, stop_patience=None)
        return train(
            model, dataset.train, dataset.validation, config, f"{recipe.name}, {part}",
            file=folder / f"{part}.pt", processes=processes, progress=progress,
        )  # fmt: skip

    history = History()
    if recipe.calibrate is not None:
        history = run(WARM_UP, recipe.calibrate)
        # Also where a checkpoint is about to take its place: another process may just be removing that.
        some = dataset.train.first(min(CALIBRATION_SAMPLES, len(dataset.train)))
        calibrate_caps(model, [some.x.to(device)], progress=False)
    main = run(TRAINING, None)
    processes.wait()
    if processes.rank == 0:
        warm_up, histories = checkpoint.history_state(history), checkpoint.history_state(main)
        state = {"model": model.state_dict(), "warm_up": warm_up, "history": histories}
        checkpoint.save(state, result_file(recipe, work))
        for part in PARTS:
            (folder / f"{part}.pt").unlink(missing_ok=True)
    processes.wait()


def trained(
    recipe: Recipe, work: Path, root: Path | None = None, device: torch.device | None = None
) -> tuple[nn.Module, History, History]:
    """The trained model in eval mode, the history of its warm-up (empty without one) and of its training.

    Raises:
        FileNotFoundError: it was not trained yet.
        DamagedFileError: its file is not whole.
    """
    path = result_file(recipe, work)
    state = checkpoint.load(path, RESULT)
    model = _built(recipe, root)
    with checkpoint.reading(path):
        model.load_state_dict(state["model"])
        histories = checkpoint.history_of(state["warm_up"]), checkpoint.history_of(state["history"])
    return (model.to(device or torch.device("cpu")).eval(), *histories)


def checkpoints(recipe: Recipe, work: Path) -> dict[Path, Sequence[str]]:
    """The files that training reads or leaves, and the keys of each."""
    parts = {work / recipe.name / f"{part}.pt": STORED for part in PARTS}
    return {result_file(recipe, work): RESULT, **parts}


def result_file(recipe: Recipe, work: Path) -> Path:
    """Where the trained model is kept."""
    return work / recipe.name / "trained.pt"


@lru_cache(maxsize=2)
def dataset_of(recipe: DataRecipe, root: Path | None) -> data.Dataset:
    """The data as the recipe says: mixed, limited, or with augmentation."""
    generated = None
    if recipe.generated is not None:
        beside = CONFIGURATIONS / recipe.generated
        generated = beside if beside.is_file() else (root or data.ROOT) / recipe.generated
    found = data.load(recipe.name, root, generated, recipe.original_share)
    if recipe.train_limit is not None:
        found = replace(found, train=found.train.limited(recipe.train_limit))
    if not recipe.augment:
        found.train.augmentation = None
    return found


def _built(recipe: Recipe, root: Path | None) -> nn.Module:
    dataset = dataset_of(recipe.data, root)
    activation = "drelu" if recipe.has_caps else "relu"
    return models.build(
        recipe.model, activation, classes=dataset.classes, shape=dataset.shape, seed=recipe.seed, init=recipe.init,
        place=recipe.place, head=recipe.head,
    )  # fmt: skip
