"""A plugin of pytest for a run with a time limit: tests that are not begun in time are skipped, and say so.

So the run ends by itself, with its report. The names of failed tests go to a file as they fail, for where a test that
hangs makes an end by force necessary.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

NAME = "tools.gpu.deadline"
NOT_BEGUN = "not begun: the time limit was reached"
FILE_PROPERTY = "file"  # of a test in the report, whose own names are those of modules and classes
# Seconds since the epoch, the same for all workers; and the file.
DEADLINE = "DRELUOP_TEST_DEADLINE"
FAILURES = "DRELUOP_TEST_FAILURES"


def pytest_runtest_setup(item: pytest.Item) -> None:
    # After tests/conftest.py, which was loaded later and notes the tests of the GPU; before any fixture is made.
    item.user_properties.append((FILE_PROPERTY, item.location[0]))
    if time.time() > float(os.environ[DEADLINE]):
        pytest.skip(NOT_BEGUN)


class Failures:
    """Runs where all reports arrive: in the one process, or in the one that gives the workers their tests."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            with self.path.open("a") as file:
                file.write(report.nodeid + "\n")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Failures(Path(os.environ[FAILURES])), "failures-as-they-come")
