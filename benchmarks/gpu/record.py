"""What a stage leaves behind: one JSON file, written as it ends."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from benchmarks.harness import files, machine
from benchmarks.harness.machine import Commit, Gpu

PASSED, FAILED, NOT_RUN = "passed", "failed", "not run"


@dataclass(frozen=True)
class Outcome:
    """How a stage ended; a stage that did not prove what it is for never passed. ``reason`` says why it did not."""

    status: str
    reason: str | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.status not in (PASSED, FAILED, NOT_RUN):
            raise ValueError(f"status: got {self.status!r}; expected {PASSED!r}, {FAILED!r} or {NOT_RUN!r}")
        if (self.reason is None) != (self.status == PASSED):
            raise ValueError(f"reason: got {self.reason!r} for a stage that {self.status}")


class Record(TypedDict):
    """An outcome with what it was found on. The versions are those of Python, torch, dreluop and torch's CUDA."""

    stage: str
    status: str
    reason: str | None
    seconds: float
    date: str
    versions: dict[str, str]
    device: Gpu
    commit: Commit | None
    details: dict[str, Any]


def record_of(
    stage: str, outcome: Outcome, seconds: float, gpu: Gpu, versions: dict[str, str], commit: Commit | None
) -> Record:
    return {
        "stage": stage,
        "status": outcome.status,
        "reason": outcome.reason,
        "seconds": round(seconds, 1),
        "date": machine.now(),
        "versions": versions,
        "device": gpu,
        "commit": commit,
        "details": outcome.details,
    }


def write(record: Record, folder: Path) -> Path:
    # Not by the stage's name alone, which may be that of its results.
    path = folder / f"stage-{record['stage']}.json"
    files.save_document(record, path)
    return path


def line(record: Record) -> str:
    """One line for a person."""
    reason = f": {record['reason']}" if record["reason"] else ""
    return f"{record['stage']:9} {record['status']}{reason} ({record['seconds']:.0f} s)"
