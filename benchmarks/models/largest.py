"""The largest batch of a training step that fits into a GPU's memory.

Two small batches tell what an image takes; from there on, batches are tried with a whole step, running out of memory
being one of the answers. Memory is handed out in parts, so that less than what the first estimate gives may fit.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.harness.attempts import attempt
from benchmarks.harness.machine import Platform
from benchmarks.models import networks
from benchmarks.models.implementations import FULL
from benchmarks.models.networks import NETWORKS
from benchmarks.models.steps import EAGER, Subject, memory_format

SMALL = (16, 32)
GRAIN = 8  # batches are multiples of it
SPREAD = 0.03  # how far beside the estimate the next try is, then twice as far
TRIES = 6


@dataclass(frozen=True)
class Search:
    """A network and a precision to search for, eager; ``seconds`` as in ``suite.Case``."""

    network: str
    precision: str
    implementations: tuple[str, ...]
    seconds: float
    mode: str = EAGER

    @property
    def label(self) -> str:
        return f"{self.network}, {FULL}, {self.precision}, largest batch"


@dataclass(frozen=True)
class Found:
    """``batch`` fits, ``too_large`` does not (None: nothing larger was tried)."""

    batch: int
    too_large: int | None
    tries: int

    @property
    def ended(self) -> bool:
        """Whether it tried what it may, or nothing is left between the two batches."""
        return self.tries >= TRIES or (self.too_large is not None and self.too_large - self.batch <= GRAIN)


def search(fits: Callable[[int], bool], estimate: float, time_is_left: Callable[[], bool] = lambda: True) -> Found:
    """The largest multiple of ``GRAIN`` that fits, or nearly: found from an estimate in at most ``TRIES`` tries.

    Args:
        fits: tries a batch.
        estimate: of the largest batch that fits.
        time_is_left: asked before every try but the first.

    Raises:
        RuntimeError: none of the tried batches fits.
    """
    low, high = 0, None
    tries, batch, spread = 0, _grained(estimate), SPREAD
    while tries < TRIES and (not tries or time_is_left()) and batch > low and (high is None or batch < high):
        tries += 1
        if fits(batch):
            low = batch
        else:
            high = batch
        if low and high:
            batch = _grained((low + high) / 2)
        else:
            batch = _grained(low * (1 + spread)) + GRAIN if low else _grained((high or 0) * (1 - spread) - GRAIN)
            spread *= 2
    if not low:
        raise RuntimeError(f"none of {tries} batches fits, the smallest of {high} images")
    return Found(low, high, tries)


def _grained(batch: float) -> int:
    return max(GRAIN, int(batch) // GRAIN * GRAIN)


def find_all(of: Search, platform: Platform, until: float | None = None) -> list[dict[str, Any]]:
    """Search for every implementation; ``until`` as in ``attempts.attempt``."""

    def time_is_left() -> bool:
        return until is None or time.monotonic() < until

    found, failures = attempt(
        of.implementations, lambda name: find(of, name, platform, time_is_left), platform.release, until
    )
    return [*found.values(), *failures]


def find(
    of: Search, implementation: str, platform: Platform, time_is_left: Callable[[], bool] = lambda: True
) -> dict[str, Any]:
    """Search on a platform that counts its memory, a GPU; a search that did not end is to be made again.

    Raises:
        RuntimeError: nothing that was tried fits, or memory does not grow with the batch.
    """
    image = NETWORKS[of.network].image
    platform.release()
    free = platform.free_bytes()

    def data(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        return networks.data(batch, image, platform.device, memory_format(of.precision))

    subject = Subject(of.network, FULL, implementation, data(SMALL[0]), precision=of.precision)
    # Makes what every later step needs too, such as the optimizer's state.
    subject.step()

    def peak(batch: int) -> int:
        # The last batch goes before the next one comes.
        subject.images = subject.labels = torch.empty(0)
        subject.images, subject.labels = data(batch)
        found = subject.peak_bytes(platform)
        assert found is not None, f"{platform.device} counts no memory"
        return found

    def fits(batch: int) -> bool:
        try:
            peak(batch)
            fitted = True
        except torch.cuda.OutOfMemoryError:
            fitted = False
        # What the error's frames held is free only now.
        platform.release()
        return fitted

    few, many = map(peak, SMALL)
    platform.release()
    per_image = (many - few) / (SMALL[1] - SMALL[0])
    if per_image <= 0:
        raise RuntimeError(f"{SMALL[0]} images take {few} bytes and {SMALL[1]} take {many}: nothing to estimate from")
    found = search(fits, SMALL[0] + (free - few) / per_image, time_is_left)
    return {
        "network": of.network,
        "precision": of.precision,
        "implementation": implementation,
        "image": image,
        "largest": found.batch,
        "too_large": found.too_large,
        "tries": found.tries,
        "ended": found.ended,
        "bytes_per_image": per_image,
    }
