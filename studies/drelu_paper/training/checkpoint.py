"""A run's state on disk, so that a killed run goes on from its last epoch."""

from __future__ import annotations

import zipfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.files import DamagedFileError, replacing
from studies.drelu_paper.training.history import EpochRecord, History


def save(state: dict[str, Any], path: Path) -> None:
    """Write so that at any time the file is whole: the old one or the new one."""
    with replacing(path) as unfinished:
        torch.save(state, unfinished)


def load(path: Path, keys: Collection[str] = ()) -> dict[str, Any]:
    """What was saved, on the CPU.

    Raises:
        FileNotFoundError: there is none.
        DamagedFileError: the file is not whole, by the checksums in it, or lacks one of these keys.
    """
    with reading(path):
        # torch does not look at the checksums.
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken is not None:
            raise zipfile.BadZipFile(f"the checksum of {broken} is wrong")
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        lacking = [key for key in keys if key not in state]
        if lacking:
            raise KeyError(f"got no {', '.join(lacking)}")
        return state


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """A block whose errors mean that the file is damaged: they become ``DamagedFileError``, which names it."""
    try:
        yield
    except (DamagedFileError, FileNotFoundError, PermissionError, MemoryError):
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise DamagedFileError(path, f"not a whole checkpoint ({type(error).__name__}: {reason})") from error


def history_state(history: History) -> dict[str, Any]:
    return asdict(history)


def history_of(state: dict[str, Any]) -> History:
    return History(**{**state, "records": [EpochRecord(**record) for record in state["records"]]})
