"""Time limits of commands, reached by what the command did: its speed decides nothing."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable

import pytest

from tools.gpu import execute


def limit_is_reached_when(reached: Callable[[], bool], monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(process: subprocess.Popen[str], limit: float) -> bool:
        while process.poll() is None and not reached():
            time.sleep(0.01)
        return real(process, 0)

    real = execute._wait
    monkeypatch.setattr(execute, "_wait", wait)
