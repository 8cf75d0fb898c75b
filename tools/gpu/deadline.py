"""A pytest plugin for a run with a time limit: tests that are not begun in time are skipped with that reason.

So the run ends by itself, with its report. Failures are printed at once, in case a test hangs and the run is killed.
"""

from __future__ import annotations

import os
import time

import pytest

NAME = "tools.gpu.deadline"
NOT_BEGUN = "not begun: the time limit was reached"
FILE_PROPERTY = "file"  # of a test in the report, which itself names only modules and classes
DEADLINE = "DRELUOP_TEST_DEADLINE"  # seconds since the epoch, the same for all workers
FAILURE = "failed just now: "


def pytest_runtest_setup(item: pytest.Item) -> None:
    # Runs after tests/conftest.py, which marks GPU tests, and before any fixture.
    item.user_properties.append((FILE_PROPERTY, item.location[0]))
    if time.time() > float(os.environ[DEADLINE]):
        pytest.skip(NOT_BEGUN)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        print(f"\n{FAILURE}{report.nodeid}", flush=True)
