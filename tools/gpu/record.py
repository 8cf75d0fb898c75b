"""What a stage leaves behind: one JSON file, written as it ends."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.harness import files, machine
from benchmarks.harness.machine import Gpu

PASSED, FAILED, NOT_RUN = "passed", "failed", "not run"
Record = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """How a stage ended; ``reason`` says why it did not pass. A stage passes only if it proved what it is for."""

    status: str
    reason: str | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.status not in (PASSED, FAILED, NOT_RUN):
            raise ValueError(f"status: got {self.status!r}; expected {PASSED!r}, {FAILED!r} or {NOT_RUN!r}")
        if (self.reason is None) != (self.status == PASSED):
            raise ValueError(f"reason: got {self.reason!r} for a stage that {self.status}")


def outcome(reason: str | None, details: dict[str, Any]) -> Outcome:
    """Failed for a reason, or passed where there is none."""
    return Outcome(PASSED if reason is None else FAILED, reason, details)


def write(stage: str, found: Outcome, seconds: float, gpu: Gpu, folder: Path) -> Record:
    """Write a stage's outcome and what it ran on."""
    record: Record = {
        "stage": stage,
        "status": found.status,
        "reason": found.reason,
        "seconds": round(seconds, 1),
        "date": machine.now(),
        "versions": machine.gpu_versions(),
        "device": gpu,
        "commit": machine.commit(),
        "details": found.details,
    }
    # The prefix keeps it apart from the stage's results, which may have the same name.
    files.save_document(record, folder / f"stage-{stage}.json")
    return record


def line(record: Record) -> str:
    """One line for a person."""
    reason = f": {record['reason']}" if record["reason"] else ""
    return f"{record['stage']:9} {record['status']}{reason} ({record['seconds']:.0f} s)"
