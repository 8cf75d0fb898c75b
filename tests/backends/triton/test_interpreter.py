"""The Triton kernels run by Triton's interpreter, on the CPU, in a process of their own.

``TRITON_INTERPRET=1`` must be set before triton is imported, and then no kernel of the process is compiled.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dreluop.backends.triton import _import_error

ROOT = Path(__file__).parents[3]


def test_kernels_in_the_interpreter() -> None:
    if _import_error() is not None:
        pytest.skip(str(_import_error()))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/backends/triton/interpreted"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:]
    assert int(done.stdout.rsplit(" passed", 1)[0].split()[-1]) > 90, done.stdout[-500:]
    assert "skipped" not in done.stdout, done.stdout[-500:]
