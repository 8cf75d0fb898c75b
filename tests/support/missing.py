"""Where ``make gpu`` says so, tests that need a development package which is not installed are skipped, by its name.

The gpu's machine runs the torch that is installed there and cannot install anything; elsewhere such a package is a
failure, as it must be.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Generator

import pytest

ENVIRONMENT_VARIABLE = "DRELUOP_SKIP_MISSING_PACKAGES"
PACKAGES = (
    *("art", "auditwheel", "eagerpy", "expecttest", "foolbox", "hypothesis", "matplotlib", "mlxtend", "numpy"),
    *("onnx", "onnx_ir", "onnxruntime", "onnxscript", "pandas", "pyautoattack", "pybind11", "ray", "rich"),
    *("pydantic", "scikit_posthocs", "scipy", "tqdm", "yaml"),
)


def is_missing(module: str | None) -> bool:
    """Whether a module belongs to a development package that is not installed."""
    package = (module or "").split(".")[0]
    return package in PACKAGES and importlib.util.find_spec(package) is None


def _enabled() -> bool:
    return os.environ.get(ENVIRONMENT_VARIABLE) == "1"


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if report.failed and _enabled():
        found = re.findall(r"ModuleNotFoundError: No module named '([\w.]+)'", str(report.longrepr))
        if found and is_missing(found[-1]):
            report.outcome = "skipped"
            report.longrepr = (str(collector.path), 0, f"Skipped: needs {found[-1].split('.')[0]}, not installed")
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    error = call.excinfo.value if call.excinfo else None
    if report.failed and _enabled() and isinstance(error, ModuleNotFoundError) and is_missing(error.name):
        report.outcome = "skipped"
        report.longrepr = (str(item.path), 0, f"Skipped: needs {error.name.split('.')[0]}, not installed")
    return report
