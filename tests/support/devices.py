"""Tensors on other devices, and operators of another device called with CPU tensors.

So every test of the operators is a test of that device too, and the oracle stays where it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

HAS_CUDA = torch.cuda.is_available()
DEVICES = ("cpu", "cuda") if HAS_CUDA else ("cpu",)


@contextmanager
def new_tensors_on_meta() -> Iterator[None]:
    """The default device is the meta device, whose tensors have no values."""
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


class Mover:
    """Copies tensors to a device with everything around them: strides, offset, surroundings, shared memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.moved: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(map(self, value))
        if not isinstance(value, Tensor):
            return value
        memory = _bytes_of(value)
        if memory.data_ptr() not in self.moved:
            self.moved[memory.data_ptr()] = memory, memory.to(self.device, copy=True)
        target = self.moved[memory.data_ptr()][1]
        t = torch.empty(0, dtype=value.dtype, device=self.device)
        return t.set_(target.untyped_storage(), value.storage_offset(), value.shape, value.stride())

    def write_back(self) -> None:
        """What was written over the copies, and around them, to where they came from."""
        for source, target in self.moved.values():
            source.copy_(target)

    def size(self) -> int:
        return sum(len(source) for source, _ in self.moved.values())


def _bytes_of(t: Tensor) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=t.device).set_(t.untyped_storage())


def moved(t: Tensor, device: torch.device | str) -> Tensor:
    """A copy on a device with the same strides and offset; a leaf that needs a gradient if t does."""
    copy: Tensor = Mover(torch.device(device))(t.detach())
    return copy.requires_grad_(t.requires_grad)


def poison(size: int, device: torch.device) -> None:
    """Fill memory that the next results will likely get, so that elements never written show as NaN, -1 or 255."""
    if device.type != "cpu":
        torch.full((max(size, 1),), 255, dtype=torch.uint8, device=device)


def on_device(function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """The function, run on a device with tensors of the CPU; its results come back with their strides."""

    def call(*arguments: Any) -> Any:
        there = Mover(device)
        copies = there(arguments)
        poison(4 * there.size(), device)
        try:
            result = function(*copies)
        finally:
            # After an error too: whoever calls may check that nothing was changed.
            there.write_back()
        return Mover(torch.device("cpu"))(result)

    return call
