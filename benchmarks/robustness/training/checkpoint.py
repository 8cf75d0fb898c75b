"""A run's state on disk, so that a killed run goes on from its last epoch."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.files import replacing
from benchmarks.robustness.training.history import EpochRecord, History


def save(state: dict[str, Any], path: Path) -> None:
    """Write so that at any time the file is whole: the old one or the new one."""
    with replacing(path) as unfinished:
        torch.save(state, unfinished)


def load(path: Path, device: torch.device) -> dict[str, Any]:
    """
    Raises:
        FileNotFoundError: there is none.
    """
    state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    return state


def history_state(history: History) -> dict[str, Any]:
    return asdict(history)


def history_of(state: dict[str, Any]) -> History:
    return History(**{**state, "records": [EpochRecord(**record) for record in state["records"]]})
