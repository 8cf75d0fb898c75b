"""The data sets by name."""

from __future__ import annotations

from pathlib import Path

from benchmarks.robustness.data.digits import digits_dataset
from benchmarks.robustness.data.parts import Dataset

NAMES = ("digits",)


def load(
    name: str,
    root: Path | None = None,
    generated: Path | None = None,
    original_share: float | None = None,
    seed: int = 0,
) -> Dataset:
    """A data set. Only the digits yet, which are embedded."""
    if name not in NAMES:
        raise ValueError(f"name: got {name!r}; expected one of {', '.join(map(repr, NAMES))}")
    if generated is not None or original_share is not None:
        raise ValueError("generated, original_share: not for the digits yet")
    return digits_dataset(seed)
