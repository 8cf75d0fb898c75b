"""Commands with a time limit, each in a process of its own: what breaks there does not break the other stages."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[2]
GRACE = 15  # seconds between asking a command to end and ending it


@dataclass(frozen=True)
class Finished:
    """``timed_out``: it was stopped at its limit, first by SIGINT, so that it could leave what it had."""

    code: int
    output: str
    timed_out: bool


def execute(
    command: Sequence[str], *, limit: float, log: Path, environment: Mapping[str, str] | None = None
) -> Finished:
    """Run a command in the repository, print its output and append it to a log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    text: list[str] = []
    with log.open("a") as file:
        file.write(f"\n$ {shlex.join(command)}\n")
        file.flush()
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            # Whoever is started in the background ignores SIGINT, and so would the command.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 (no other thread yet)
            text=True,
            errors="replace",
            start_new_session=True,
        )
        assert process.stdout is not None
        reader = threading.Thread(target=_copy, args=(process.stdout, file, text), daemon=True)
        reader.start()
        try:
            timed_out = _wait(process, limit)
        finally:
            # Also where we are interrupted ourselves. What it started and left running goes with it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        reader.join(GRACE)
    return Finished(process.returncode, "".join(text), timed_out)


def _wait(process: subprocess.Popen[str], limit: float) -> bool:
    try:
        process.wait(limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
        return True
    return False


def _copy(source: IO[str], file: IO[str], text: list[str]) -> None:
    for line in source:
        text.append(line)
        file.write(line)
        file.flush()
        sys.stdout.write(line)
        sys.stdout.flush()
