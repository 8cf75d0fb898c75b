"""What the tests of kinds of user code begin with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.surgery.counting import check

Made = Callable[[], nn.Module]


class Block(nn.Module):
    """What most networks here begin as."""

    def __init__(self) -> None:
        super().__init__()
        self.lin, self.lin2 = nn.Linear(4, 4), nn.Linear(4, 4)
        self.act = nn.ReLU()


class Unknown(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("btf,fg->btg", x, torch.ones(4, 6))


def inputs() -> Tensor:
    return torch.randn(3, 4)


def done(model: nn.Module, example: Any, run: bool, **options: Any) -> Any:
    """The report, where nothing may remain."""
    report = check(model, example, run=run, granularity="channel" if run else "layer", **options)
    assert not report.remaining, str(report)
    return report
