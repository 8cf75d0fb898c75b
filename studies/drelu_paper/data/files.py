"""What the loaders of large sets share: the error for missing files, and the labels' range."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor


def require(name: str, paths: Sequence[Path], remedy: str) -> None:
    """Check that every path exists.

    Raises:
        FileNotFoundError: one does not; it names all that are missing, and says what to do.
    """
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        raise FileNotFoundError(f"{name}: no {', '.join(missing)}; {remedy}")


def check_labels(where: str, labels: Tensor, classes: int) -> None:
    """Check that every label is one of 0 to classes - 1, and that there is one.

    Raises:
        ValueError: not so.
    """
    if len(labels) == 0:
        raise ValueError(f"{where}: got no samples; expected at least one")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise ValueError(f"{where}: got labels from {low} to {high}; expected 0 to {classes - 1}")
