"""Widths for caps that a forward makes anew, such as parametrized ones: these are known by their place in a forward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dreluop.autograd import surrogate


class ByPosition(nn.Module):
    """A model that gives every call of a cap the width of its own layer.

    It replaces the ``std`` of ``smooth_forward`` and ``surrogate_backward("soft")`` for the time of each forward.

    Args:
        model: that is called.
        named: the standard deviations before the caps that stay the same tensors.
        in_order: those before every call of a cap, in the order of a forward.
    """

    def __init__(self, model: nn.Module, named: Mapping[Tensor, Tensor], in_order: Sequence[Tensor]) -> None:
        super().__init__()
        self.model = model
        self.named, self.in_order = dict(named), list(in_order)

    def forward(self, x: Tensor) -> Any:
        wanted = surrogate.of_this_thread()
        if wanted is None or wanted.std is None:
            return self.model(x)
        with surrogate.chosen(replace(wanted, std=_Positions(self.named, self.in_order))):
            return self.model(x)


class _Positions(Mapping[Tensor, Tensor]):
    """Asked once for each call of a cap, in their order."""

    def __init__(self, named: Mapping[Tensor, Tensor], in_order: Sequence[Tensor]) -> None:
        self.named, self.left = named, iter(in_order)

    def __getitem__(self, cap: Tensor) -> Tensor:
        width = next(self.left, None)
        if width is None or width.shape != cap.shape:
            raise RuntimeError(
                f"a cap of shape {tuple(cap.shape)} is called where there was none when the widths were measured; "
                "expected a forward that always calls the same caps in the same order"
            )
        return self.named.get(cap, width)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.named)

    def __len__(self) -> int:
        return len(self.named)


def std_in_order(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The standard deviation before every call of a cap, in the order of the calls."""
    found: list[Tensor] = []

    def look(before: Tensor, cap: Tensor, dim: int) -> None:
        found.append(surrogate.batch_std(before, cap, dim))

    with surrogate.chosen(surrogate.Surrogate("soft", look=look)), torch.no_grad():
        model(x)
    return found
