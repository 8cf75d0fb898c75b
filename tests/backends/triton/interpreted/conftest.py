"""These tests run in a process of their own, started by tests/backends/triton/test_interpreter.py."""

from __future__ import annotations

import os

if os.environ.get("TRITON_INTERPRET") == "1":
    from tests.backends.triton.interpreter import make_quick

    make_quick()
else:
    collect_ignore_glob = ["test_*.py"]
