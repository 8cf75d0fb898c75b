"""Running a model over a loader, for measuring."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dreluop._internal import checks
from dreluop.caps.statistics import is_compiled

Forward = Callable[[nn.Module, Any], Any]


def run_over(model: nn.Module, loader: Iterable[Any], forward: Forward | None, progress: bool | None) -> int:
    """Run the model on every batch in eval mode without gradients, then put its modes back; returns the batches.

    Raises:
        ValueError: model is compiled, or a DataParallel on several devices: hooks in it are not called as they must be.
        TypeError: loader is a tensor or no iterable, a batch is of a kind that needs ``forward``, or progress no bool.
        ImportError: progress is True and tqdm is not installed.
    """
    progress = None if progress is None else checks.flag("progress", progress)
    if is_compiled(model):
        raise ValueError(
            "model: got a compiled module, in which nothing can be measured; apply this before torch.compile"
        )
    if any(isinstance(module, nn.DataParallel) and len(module.device_ids) > 1 for module in model.modules()):
        raise ValueError(
            "model: got a DataParallel on several devices, whose copies cannot be measured together; give its .module"
        )
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    count = 0
    with evaluated(model):
        for batch in with_bar(check_loader(loader), progress, unit="batch", leave=False):
            if forward is not None:
                forward(model, batch)
            else:
                model(_input_of(batch).to(device))
            count += 1
    return count


@contextmanager
def evaluated(model: nn.Module) -> Iterator[None]:
    """The model in eval mode, without gradients; afterwards every module's mode is as it was."""
    before = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, was in before.items():
            module.training = was


def check_loader(loader: Any) -> Iterable[Any]:
    """Raise TypeError unless loader gives batches."""
    if isinstance(loader, Tensor):
        raise TypeError("loader: got a Tensor, which gives samples; expected an iterable of batches: [x] for one batch")
    if not isinstance(loader, Iterable) and not hasattr(loader, "__getitem__"):
        raise TypeError(f"loader: got {type(loader).__name__}; expected an iterable of batches")
    return loader  # type: ignore[no-any-return]


def _input_of(batch: Any) -> Tensor:
    first = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if not isinstance(first, Tensor):
        raise TypeError(
            f"loader: got a batch of type {type(batch).__name__}; expected a tensor, or a tuple or list that starts "
            "with one; for others pass forward=lambda model, batch: ..."
        )
    return first


def with_bar(items: Iterable[Any], progress: bool | None, **options: Any) -> Iterator[Any]:
    """The items with tqdm's bar, which has these options. None: if tqdm is installed.

    Raises:
        ImportError: progress is True and tqdm is not installed.
    """
    wanted = progress if progress is not None else importlib.util.find_spec("tqdm") is not None
    if not wanted:
        return iter(items)
    try:
        tqdm = importlib.import_module("tqdm.auto").tqdm
    except ImportError as error:
        raise ImportError(
            "progress: True needs tqdm (pip install tqdm); progress=None shows a bar if it is there"
        ) from error
    return iter(tqdm(items, **options))
