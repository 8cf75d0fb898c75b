"""One network of the zoo."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Case:
    """How a network is made and called.

    Attributes:
        name: library, as it is imported, and network: ``timm/resnet18``.
        build: makes it with fresh weights.
        inputs: makes the arguments of a call, the same in both modes: a tuple, or a dictionary of keywords.
        dim: the dimension of the channels, where networks of this kind do not have it at 1.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    dim: int | None = None

    @property
    def library(self) -> str:
        return self.name.partition("/")[0]
