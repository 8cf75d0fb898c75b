"""One implementation's network with its optimizer and data: its steps, and the memory that they take."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from benchmarks.harness.machine import Platform
from benchmarks.models import implementations
from benchmarks.models.networks import loss_of

FP32, AMP = "fp32", "AMP bf16"
PRECISIONS = (FP32, AMP)
EAGER, COMPILED = "eager", "compiled"
MODES = (EAGER, COMPILED)
TRAIN, INFERENCE = "train step", "inference"
PASSES = (TRAIN, INFERENCE)

LEARNING_RATE = 1e-3
MOMENTUM = 0.9


@contextlib.contextmanager
def searching_algorithms(wanted: bool) -> Iterator[None]:
    """cuDNN times its algorithms for every new shape, as a training does; not for a batch that is only to fit."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = wanted
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def noting(step: Callable[[], None], seconds: list[float]) -> Callable[[object], None]:
    """The step, with a note of how long the host took: on a GPU, to launch all of it."""

    def noted(_: object) -> None:
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)

    return noted


def memory_format(precision: str) -> torch.memory_format:
    """The layout of images and weights."""
    return torch.channels_last if precision == AMP else torch.contiguous_format


class Subject:
    """An implementation's network on a device, ready to make steps.

    Args:
        data: images, of the precision's ``memory_format``, and labels, on the device.
        precision: AMP is autocast to bfloat16 in channels-last; fp32 is torch's default (which lets cuDNN use TF32).
        mode: compiled: the network by ``torch.compile(fullgraph=True)``; loss, penalty and optimizer stay eager.
        pass_: a train step is ``zero_grad``, forward, cross entropy and penalty, backward, and a step of SGD with
            momentum (foreach); inference is the forward in eval mode without gradients.
    """

    def __init__(
        self,
        network: str,
        variant: str,
        implementation: str,
        data: tuple[Tensor, Tensor],
        *,
        precision: str,
        mode: str = EAGER,
        pass_: str = TRAIN,
    ) -> None:
        device = data[0].device
        self.amp = precision == AMP
        self.images, self.labels = data
        model = implementations.build(network, variant, implementation)
        self.model = model.to(device=device, memory_format=memory_format(precision)).train(pass_ == TRAIN)
        self.training = pass_ == TRAIN
        self.forward: Callable[[Tensor], Tensor] = self.model
        if mode == COMPILED:
            self.forward = torch.compile(self.model, dynamic=False, fullgraph=True)
        self.penalty = implementations.penalty(self.model, implementation)
        self.optimizer = torch.optim.SGD(self.model.parameters(), LEARNING_RATE, momentum=MOMENTUM, foreach=True)

    def step(self) -> None:
        if self.training:
            self.clear()
            self.loss().backward()
            self.optimizer.step()
        else:
            self.outputs()

    def outputs(self) -> Tensor:
        with torch.no_grad(), self._autocast():
            return self.forward(self.images)

    def loss(self) -> Tensor:
        """Cross entropy and penalty, with the graph for backward."""
        with self._autocast():
            loss = loss_of(self.forward(self.images), self.labels)
        return loss if self.penalty is None else loss + self.penalty()

    def clear(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        return torch.autocast(self.images.device.type, torch.bfloat16) if self.amp else contextlib.nullcontext()

    def peak_bytes(self, platform: Platform) -> int | None:
        """The memory of a step: of network, optimizer and data, and what else is allocated at its worst moment."""
        self.clear()
        growth = platform.growth(self.step)
        return None if growth is None else growth + _bytes(self._own())

    def saved_bytes(self) -> int:
        """What a forward pass keeps for backward beyond network and data, each piece of memory counted once.

        Eager training only: what a compiled network keeps is its own business.
        """
        known = {tensor.untyped_storage().data_ptr() for tensor in self._own()}
        # The tensors too: freed memory would come again under the same address.
        kept: list[Tensor] = []

        def keep(tensor: Tensor) -> None:
            # The graph gets nothing back, as no backward follows: with an output of its own it would never be freed.
            if tensor.untyped_storage().data_ptr() not in known:
                kept.append(tensor.detach())

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda nothing: nothing):
            self.loss()
        return _bytes(kept)

    def _own(self) -> list[Tensor]:
        state = [value for of in self.optimizer.state.values() for value in of.values() if isinstance(value, Tensor)]
        return [*self.model.parameters(), *self.model.buffers(), *state, self.images, self.labels]


def _bytes(tensors: Iterable[Tensor]) -> int:
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())
