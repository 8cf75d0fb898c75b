"""A stage that runs pytest: its outcome, and what was skipped and why, come from the report that pytest writes."""

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

from tools.gpu import deadline
from tools.gpu.execute import execute
from tools.gpu.record import NOT_RUN, Outcome, outcome

ENVIRONMENT = {
    "DRELUOP_REQUIRE_NATIVE": "1",
    "DRELUOP_REQUIRE_CUDA": "1",
    # tests/support/missing.py: nothing can be installed here.
    "DRELUOP_SKIP_MISSING_PACKAGES": "1",
}
WORKERS = min(12, os.cpu_count() or 1)
GPU_PROPERTY = "gpu"  # tests/conftest.py gives it to every test that needs a GPU
END = 45  # seconds for the tests that run at the deadline to end, and for the report


def is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def run_pytest(arguments: Sequence[str], *, limit: float, log: Path, parallel: bool = False) -> Outcome:
    """Passed if no test failed and at least one GPU test passed; not run if all of those were skipped."""
    if not is_installed("pytest"):
        return Outcome(NOT_RUN, "pytest is not installed")
    command = [sys.executable, "-m", "pytest", "-q", "--durations=15", "-p", "no:cacheprovider", *arguments]
    if parallel and is_installed("xdist"):
        command += ["-n", str(WORKERS), "--dist", "worksteal"]
    deadline_at = time.time() + limit - min(END, limit / 2)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command += ["-p", deadline.NAME, f"--junit-xml={report}"]
        environment = ENVIRONMENT | {deadline.DEADLINE: str(deadline_at)}
        done = execute(command, limit=limit, log=log, environment=environment)
        details = read_report(report) if report.exists() else {"failed": failures_in(done.output)}
    return evaluate(done.code, done.timed_out, details, limit)


def evaluate(code: int, timed_out: bool, details: dict[str, Any], limit: float) -> Outcome:
    """The outcome for pytest's exit code and its report."""
    skipped, failed = details.get("skipped", {}), details.get("failed")
    reasons = []
    if timed_out:
        reasons.append(f"stopped after {limit:.0f} s")
    if not_begun := skipped.get(deadline.NOT_BEGUN):
        reasons.append(f"{not_begun} tests were not begun within the limit of {limit:.0f} s")
    if failed:
        reasons.append(f"{len(failed)} tests failed, the first: {failed[0]}")
    if not reasons and code != 0:
        reasons.append(f"pytest ended with exit code {code}")
    if not reasons and not details.get("gpu passed"):
        return Outcome(NOT_RUN, f"no test of the GPU ran: {'; '.join(skipped) or 'no test was found'}", details)
    return outcome("; ".join(reasons) or None, details)


def failures_in(output: str) -> list[str]:
    """The names that the plugin printed. A test can fail twice: in its call and in its teardown."""
    names = re.findall(rf"^{deadline.FAILURE}(.+)$", output, re.MULTILINE)
    return list(dict.fromkeys(names))


def read_report(path: Path) -> dict[str, Any]:
    """Counts, the names of failed tests, how many tests each reason skipped, and the GPU tests' counts by file."""
    failed: list[str] = []
    skipped: Counter[str] = Counter()
    passed = 0
    by_file: dict[str, Counter[str]] = {}
    for case in ET.parse(path).iter("testcase"):
        skip = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            kind = "failed"
            failed.append(f"{case.get('classname', '')}::{case.get('name', '')}")
        elif skip is not None:
            reason = _reason(skip)
            kind = "not begun" if reason == deadline.NOT_BEGUN else "skipped"
            skipped[reason] += 1
        else:
            kind = "passed"
            passed += 1
        properties = {p.get("name"): p.get("value", "") for p in case.iter("property")}
        if GPU_PROPERTY in properties:
            by_file.setdefault(properties[deadline.FILE_PROPERTY], Counter())[kind] += 1
    return {
        "passed": passed,
        "gpu passed": sum(counts["passed"] for counts in by_file.values()),
        "failed": failed,
        "skipped": dict(skipped.most_common()),
        "by file": {file: dict(counts) for file, counts in sorted(by_file.items())},
    }


def _reason(skipped: ET.Element) -> str:
    """Why a test was skipped. For a file that was not collected, the text holds it as (path, line, reason)."""
    message = skipped.get("message") or "no reason given"
    found = re.search(r"(['\"])Skipped: (.*)\1\)$", skipped.text or "") if message == "collection skipped" else None
    return found[2] if found else message.removeprefix("Skipped: ")
