"""A model as its recipe says: trained, or taken from the work folder where it was trained before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from dreluop.surgery import calibrate_caps
from studies.drelu_paper import data, models
from studies.drelu_paper.recipe import DataRecipe, Recipe
from studies.drelu_paper.samples import Limited
from studies.drelu_paper.training import History, checkpoint, train
from studies.drelu_paper.training.loop import STORED
from studies.drelu_paper.training.parallel import Processes

CALIBRATION_SAMPLES = 512
PARTS = WARM_UP, TRAINING = ("warm-up", "training")
# What the file of a trained model holds.
RESULT = ("model", "warm_up", "history")
CONFIGURATIONS = Path(__file__).with_name("configs")


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

    Args:
        recipe: of the model.
        work: folder of checkpoints; this model's are in a folder of its name.
        root: folder of the data sets' files.
        device: of the model; None is the CPU.
        processes: of torchrun.
        progress: show a bar.
    """
    if is_trained(recipe, work):
        return
    folder = work / recipe.name
    processes = processes or Processes()
    device = device or torch.device("cpu")
    dataset = dataset_of(recipe.data, root)
    model = _fresh(recipe, work, root).to(device)
    training = Limited(dataset.train, recipe.data.train_limit, recipe.data.augment)

    def run(part: str, warm_up: int | None) -> History:
        config = recipe.training
        if warm_up is not None:
            config = replace(config, balancer=0.0, epochs=warm_up, stop_patience=None)
        return train(
            model, training, dataset.validation, config, f"{recipe.name}, {part}",
            file=folder / f"{part}.pt", processes=processes, progress=progress,
        )  # fmt: skip

    history = History()
    if recipe.calibrate is not None:
        history = run(WARM_UP, recipe.calibrate)
        # Also where a checkpoint is about to take its place: another process may just be removing that.
        some = dataset.train.first(min(CALIBRATION_SAMPLES, len(training)))
        calibrate_caps(model, [some.x.to(device)], progress=False)
    main = run(TRAINING, None)
    processes.wait()
    if processes.rank == 0:
        state = {
            "model": model.state_dict(),
            "warm_up": checkpoint.history_state(history),
            "history": checkpoint.history_state(main),
        }
        checkpoint.save(state, _result(recipe, work))
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
    path = _result(recipe, work)
    state = checkpoint.load(path, RESULT)
    model = _built(recipe, root)
    with checkpoint.reading(path):
        model.load_state_dict(state["model"])
        histories = checkpoint.history_of(state["warm_up"]), checkpoint.history_of(state["history"])
    return (model.to(device or torch.device("cpu")).eval(), *histories)


def is_trained(recipe: Recipe, work: Path) -> bool:
    """Whether ``trained`` has something to read."""
    return _result(recipe, work).exists()


def checkpoints(recipe: Recipe, work: Path) -> dict[Path, Sequence[str]]:
    """The files that training reads or leaves, and the keys of each."""
    parts = {work / recipe.name / f"{part}.pt": STORED for part in PARTS}
    return {_result(recipe, work): RESULT, **parts}


def _result(recipe: Recipe, work: Path) -> Path:
    return work / recipe.name / "trained.pt"


@lru_cache(maxsize=2)
def dataset_of(recipe: DataRecipe, root: Path | None) -> data.Dataset:
    generated = None if recipe.generated is None else _generated_file(recipe.generated, root)
    return data.load(recipe.name, root, generated, recipe.original_share)


def _generated_file(name: str, root: Path | None) -> Path:
    beside = CONFIGURATIONS / name
    return beside if beside.is_file() else (root or data.ROOT) / name


def _fresh(recipe: Recipe, work: Path, root: Path | None) -> nn.Module:
    return _built(recipe, root) if recipe.start is None else trained(recipe.start, work, root)[0]


def _built(recipe: Recipe, root: Path | None) -> nn.Module:
    dataset = dataset_of(recipe.data, root)
    activation = "drelu" if recipe.has_caps else "relu"
    return models.build(
        recipe.model, activation, classes=dataset.classes, shape=dataset.shape, seed=recipe.seed, init=recipe.init,
        place=recipe.place, head=recipe.head,
    )  # fmt: skip
