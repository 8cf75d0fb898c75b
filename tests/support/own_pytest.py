"""Tests that need a process of their own: another library, or a variable that is read at import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def passed_in_own_process(config: pytest.Config, *arguments: str, **environment: str) -> int:
    """Run tests in the tier of this run, let none fail or be skipped, and count them."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    # Kernels in an interpreter or on the host shim have one thread: a second one of torch would only wait for it.
    kept |= {"OMP_NUM_THREADS": "1", **environment}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        f"--tier={config.option.tier}",
        *arguments,
    ]
    done = subprocess.run(command, cwd=ROOT, env=kept, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:]
    assert "skipped" not in done.stdout, done.stdout[-500:]
    return int(done.stdout.rsplit(" passed", 1)[0].split()[-1])
