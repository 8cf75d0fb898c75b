"""A stage that is a run of pytest: its outcome, with what was skipped and why, from the report that pytest writes."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu import deadline
from benchmarks.gpu.execute import execute
from benchmarks.gpu.record import FAILED, NOT_RUN, PASSED, Outcome

ENVIRONMENT = {
    "DRELUOP_REQUIRE_NATIVE": "1",
    "DRELUOP_REQUIRE_CUDA": "1",
    # tests/support/missing.py: nothing can be installed here.
    "DRELUOP_SKIP_MISSING_PACKAGES": "1",
}
WORKERS = min(12, os.cpu_count() or 1)
GPU_PROPERTY = "gpu"  # tests/conftest.py gives it to every test that needs a GPU
END = 45  # seconds in which the tests that run at the deadline can end, and the report be written
# conftest.py of these folders imports what the folder needs, too early for tests/support/missing.py.
NEEDED_BY_FOLDER = {
    "tests/benchmarks/kernels": ("rich",),
    "tests/benchmarks/robustness": ("numpy", "tqdm"),
    "tests/studies": ("numpy", "tqdm"),
}


def is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def run_pytest(arguments: Sequence[str], *, limit: float, log: Path, parallel: bool = False) -> Outcome:
    """Passed if no test failed and at least one test of the GPU passed; not run if all of those were skipped."""
    if not is_installed("pytest"):
        return Outcome(NOT_RUN, "pytest is not installed")
    ignored = {
        folder: missing
        for folder, packages in NEEDED_BY_FOLDER.items()
        if (missing := [package for package in packages if not is_installed(package)])
    }
    command = [sys.executable, "-m", "pytest", "-q", "--durations=15", "-p", "no:cacheprovider", *arguments]
    if parallel and is_installed("xdist"):
        command += ["-n", str(WORKERS), "--dist", "worksteal"]
    command += [f"--ignore={folder}" for folder in ignored]
    with tempfile.TemporaryDirectory() as folder:
        report, failures = Path(folder) / "report.xml", Path(folder) / "failures.txt"
        environment = {
            **ENVIRONMENT,
            deadline.DEADLINE: str(time.time() + limit - min(END, limit / 2)),
            deadline.FAILURES: str(failures),
        }
        command += ["-p", deadline.NAME, f"--junit-xml={report}"]
        done = execute(command, limit=limit, log=log, environment=environment)
        details: dict[str, Any] = {}
        if report.exists():
            details = read_report(report)
        elif failures.exists():
            # A test may fail twice, the second time while it is torn down.
            details = {"failed": list(dict.fromkeys(failures.read_text().splitlines()))}
    details["not collected"] = {folder: f"needs {', '.join(missing)}" for folder, missing in ignored.items()}
    return evaluate(done.code, done.timed_out, details, limit)


def evaluate(code: int, timed_out: bool, details: dict[str, Any], limit: float) -> Outcome:
    """The outcome of pytest's exit code and of its report."""
    reasons = []
    not_begun = details.get("skipped", {}).get(deadline.NOT_BEGUN, 0)
    if timed_out:
        reasons.append(f"stopped after {limit:.0f} s")
    if not_begun:
        reasons.append(f"{not_begun} tests were not begun within the limit of {limit:.0f} s")
    if details.get("failed"):
        reasons.append(f"{len(details['failed'])} tests failed, the first: {details['failed'][0]}")
    if reasons:
        return Outcome(FAILED, "; ".join(reasons), details)
    if code != 0:
        return Outcome(FAILED, f"pytest ended with exit code {code}", details)
    if not details.get("gpu passed"):
        skipped = "; ".join(details.get("skipped", {})) or "no test was found"
        return Outcome(NOT_RUN, f"no test of the GPU ran: {skipped}", details)
    return Outcome(PASSED, None, details)


def read_report(path: Path) -> dict[str, Any]:
    """Counts, the names of failed tests, how many tests each reason skipped, and counts of the GPU's tests by file."""
    failed: list[str] = []
    skipped: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    by_file: dict[str, Counter[str]] = {}
    for case in ET.parse(path).iter("testcase"):
        name = f"{case.get('classname', '')}::{case.get('name', '')}"
        reason = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            kind = "failed"
            failed.append(name)
        elif reason is not None:
            why = _why(reason)
            kind = "not begun" if why == deadline.NOT_BEGUN else "skipped"
            skipped[why] += 1
        else:
            kind = "passed"
        kinds[kind] += 1
        properties = {p.get("name"): p.get("value", "") for p in case.iter("property")}
        if GPU_PROPERTY in properties:
            by_file.setdefault(properties[deadline.FILE_PROPERTY], Counter())[kind] += 1
    return {
        "passed": kinds["passed"],
        "gpu passed": sum(counts["passed"] for counts in by_file.values()),
        "failed": failed,
        "skipped": dict(skipped.most_common()),
        "by file": {file: dict(counts) for file, counts in sorted(by_file.items())},
    }


def _why(skipped: ET.Element) -> str:
    """The reason of a skip; of a file that was not collected it stands in the text, as path, line and reason."""
    message = skipped.get("message") or "no reason given"
    found = re.search(r"(['\"])Skipped: (.*)\1\)$", skipped.text or "") if message == "collection skipped" else None
    return found[2] if found else message.removeprefix("Skipped: ")
