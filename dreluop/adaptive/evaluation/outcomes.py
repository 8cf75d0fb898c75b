"""What attacks found, input by input; kept between attacks, so that a broken evaluation goes on where it stopped."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

# The adaptive attack in L2, at the smallest of the bounds of CW-L2.
L2 = "margin_l2"


@dataclass
class Outcomes:
    """Filled attack by attack by ``evaluate``, which runs only what is not here yet.

    A subclass may override ``begins`` and ``ended``, for example to report and to save.

    Attributes:
        right: for each attack, whether the model was still right, bool of shape (N,), on the CPU.
        distances: L2 distances of what CW-L2 found, infinity where it found nothing; None before it ran.
        seconds, cpu_seconds: of each attack.
    """

    right: dict[str, Tensor] = field(default_factory=dict)
    distances: Tensor | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    cpu_seconds: dict[str, float] = field(default_factory=dict)

    def begins(self, name: str) -> None:
        """Called before each attack."""

    def ended(self) -> None:
        """Called after each attack, with its outcome in place."""

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        self.begins(name)
        began, began_cpu = time.perf_counter(), time.process_time()
        yield
        self.seconds[name] = time.perf_counter() - began
        self.cpu_seconds[name] = time.process_time() - began_cpu
        self.ended()

    def check(self, samples: int, in_l2: int, dtype: torch.dtype) -> None:
        """Check that these are outcomes on so many inputs of this dtype, ``in_l2`` of them attacked in L2.

        Raises:
            ValueError: not so.
        """
        for key in ("right", "seconds", "cpu_seconds"):
            if not isinstance(getattr(self, key), dict):
                raise ValueError(f"{key}: got {type(getattr(self, key)).__name__}; expected a dict")
        for key in ("seconds", "cpu_seconds"):
            for name, value in getattr(self, key).items():
                if not isinstance(value, float):
                    raise ValueError(f"{key} of {name}: got {type(value).__name__}; expected a float")
        for name, right in self.right.items():
            _check_column(name, right, in_l2 if name == L2 else samples, torch.bool)
        if self.distances is not None:
            _check_column("distances", self.distances, in_l2, dtype)


def _check_column(name: str, value: Any, length: int, dtype: torch.dtype) -> None:
    if not isinstance(value, Tensor) or value.shape != (length,) or value.dtype != dtype:
        got = f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{name}: got {got}; expected {dtype} of shape ({length},)")
