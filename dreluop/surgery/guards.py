"""What is out of range becomes zero: the guard of a module's output or input where there is no ReLU to cap."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from dreluop.caps.statistics import dropped_by_cap, pre_activation
from dreluop.functional import Above, NaN
from dreluop.modules import DReLU, SReLU

NAME = "range_guard"


class RangeGuard(nn.Module):
    """y = x inside [low, high]; outside +0, or the nearer bound with ``above="cap"``.

    Args:
        low, high: the bounds, kept as buffers of x's dtype; low may be -inf.
        above: ``"zero"`` or ``"cap"``.
        nan: ``"zero"``: a NaN becomes +0; ``"propagate"``: it stays.
    """

    low: Tensor
    high: Tensor

    def __init__(self, low: Tensor, high: Tensor, above: Above = "zero", nan: NaN = "zero") -> None:
        super().__init__()
        self.register_buffer("low", low)
        self.register_buffer("high", high)
        self.above, self.nan = above, nan

    def forward(self, x: Tensor) -> Tensor:
        bounded = x.clamp(self.low, self.high)
        if self.above == "cap":
            return bounded.nan_to_num(0.0) if self.nan == "zero" else bounded
        # A NaN is not equal to itself.
        outside = bounded != x if self.nan == "zero" else (x < self.low) | (x > self.high)
        return x.masked_fill(outside, 0.0)

    def outside(self, x: Tensor) -> Tensor:
        """Where x is changed: bool, of x's shape."""
        changed = (x < self.low) | (x > self.high)
        return changed | x.isnan() if self.nan == "zero" else changed

    def extra_repr(self) -> str:
        return f'{self.low.item():.4g}, {self.high.item():.4g}, above="{self.above}", nan="{self.nan}"'


def each_tensor(value: Any, change: Any) -> Any:
    """A module's output with every floating-point tensor in it changed, in tuples, lists and dicts too."""
    if isinstance(value, Tensor):
        return change(value) if value.is_floating_point() else value
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(each_tensor(one, change) for one in value))
    if isinstance(value, (tuple, list)):
        return type(value)(each_tensor(one, change) for one in value)
    if isinstance(value, dict):
        # A copy, which may be of a class with attributes too.
        result = copy.copy(value)
        for key, one in value.items():
            result[key] = each_tensor(one, change)
        return result
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        other = copy.copy(value)
        for part in dataclasses.fields(value):
            object.__setattr__(other, part.name, each_tensor(getattr(value, part.name), change))
        return other
    return value


def guard_output(module: nn.Module, guard: RangeGuard) -> None:
    """Let a module's output go through the guard, which becomes a child of it."""
    module.add_module(NAME, guard)
    module.register_forward_hook(_guarded_output)


def guard_input(module: nn.Module, guard: RangeGuard) -> None:
    """Let the first argument of a module go through the guard, which becomes a child of it."""
    module.add_module(NAME, guard)
    module.register_forward_pre_hook(_guarded_input)


# Functions of the module, so that copies and pickles of a model have guards of their own.
def _guarded_output(module: Any, _: Any, output: Any) -> Any:
    return each_tensor(output, module.range_guard)


def _guarded_input(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (module.range_guard(args[0]), *args[1:])


@contextmanager
def guarded_elements(model: nn.Module) -> Iterator[dict[str, int]]:
    """Count, in the block, the elements that the guards of a protected model change: a detector of faults.

    Yields:
        By the name of the module, the elements out of range so far; 0 on clean data of the range of the loader.

    Raises:
        ValueError: the model is not protected.
    """
    counts: dict[str, int] = {}
    handles: list[Any] = []

    def add(name: str, outside: Tensor) -> None:
        counts[name] += int(outside.sum())

    def of_layer(name: str) -> Callable[..., None]:
        def look(layer: Any, args: Any, kwargs: Any) -> None:
            add(name, dropped_by_cap(layer, pre_activation(layer, args, kwargs)))

        return look

    try:
        for name, module in model.named_modules():
            if isinstance(module, RangeGuard):
                counts[name] = 0
                hook = partial(lambda name, guard, args: add(name, guard.outside(args[0])), name)
                handles.append(module.register_forward_pre_hook(hook))
            elif isinstance(module, DReLU | SReLU) and module.above == "zero":
                counts[name] = 0
                handles.append(module.register_forward_pre_hook(of_layer(name), with_kwargs=True))
        if not counts:
            raise ValueError("model: got one without guards; expected one that dreluop.surgery.protect changed")
        yield counts
    finally:
        for handle in handles:
            handle.remove()
