"""Commands with a time limit, each in a process of its own, so that a crash does not end the other stages."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
GRACE = 15  # seconds between asking a command to end and killing it


@dataclass(frozen=True)
class Finished:
    """``timed_out``: it was stopped at its limit, first by SIGINT, so that it could write what it had."""

    code: int
    output: str
    timed_out: bool

    @property
    def ending(self) -> str:
        """The exit code and the last line, for a reason in one line."""
        last = self.output.strip().splitlines()[-1:] or ["no output"]
        return f"exit code {self.code}: {last[0]}"


def execute(
    command: Sequence[str], *, limit: float, log: Path, environment: Mapping[str, str] | None = None
) -> Finished:
    """Run a command in the repository, print its output and append it to a log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        file.write(f"\n$ {shlex.join(command)}\n")
    begin = log.stat().st_size
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        # A shell starts background jobs with SIGINT ignored, and the command would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 (no other thread yet)
        start_new_session=True,
    )
    assert process.stdout is not None
    with process.stdout, subprocess.Popen(["tee", "-a", log], stdin=process.stdout, start_new_session=True) as tee:
        try:
            timed_out = _wait(process, limit)
        finally:
            # Also after Ctrl-C here. The signal reaches every process that the command left running.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            try:
                tee.wait(GRACE)
            except subprocess.TimeoutExpired:
                tee.kill()  # A process that left the session still has the pipe.
    return Finished(process.returncode, log.read_bytes()[begin:].decode(errors="replace"), timed_out)


def _wait(process: subprocess.Popen[bytes], limit: float) -> bool:
    try:
        process.wait(limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
        return True
    return False
