"""compute-sanitizer over a few calls. A tool that the host refuses is recorded as not run, with its message."""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from pathlib import Path

from tools.gpu.execute import Finished, execute
from tools.gpu.record import FAILED, NOT_RUN, PASSED, Outcome

TOOLS = ("memcheck", "initcheck", "synccheck", "racecheck")  # the slowest last: it gets the time that is left
FOUND_ERRORS = 86  # the exit code that we ask for
PROGRAM = "tests.gpu.exercise"
FEW = {"racecheck": ["--few"]}  # gave no result in 31 s on an H100, where the others take 5 s each
STARTED, COMPLETED = "exercise started", "exercise completed"  # what the program prints first and last
# One allocation per tensor: inside torch's large blocks an access beyond a tensor would go unseen.
ENVIRONMENT = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
SUMMARY = re.compile(r"^=+ (?:\w+ )?SUMMARY: .*$", re.MULTILINE)
REFUSAL = re.compile(
    r"^.*(?:not supported|unsupported|unable to|failed to init|internal sanitizer|permission|LibraryNotLoaded"
    r"|insufficient|not available).*$",
    re.MULTILINE | re.IGNORECASE,
)


def find_tool() -> str | None:
    homes = (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda")
    folders = (os.environ.get("PATH", os.defpath), *(str(Path(home) / "bin") for home in homes if home))
    return shutil.which("compute-sanitizer", path=os.pathsep.join(folders))


def run(*, limit: float, log: Path) -> Outcome:
    """Run all four tools, each with an equal share of the time that is left."""
    sanitizer = find_tool()
    if sanitizer is None:
        return Outcome(NOT_RUN, "compute-sanitizer is not installed")
    outcomes: dict[str, Outcome] = {}
    started = time.monotonic()
    for index, tool in enumerate(TOOLS):
        share = (limit - (time.monotonic() - started)) / (len(TOOLS) - index)
        command = [sanitizer, "--tool", tool, "--error-exitcode", str(FOUND_ERRORS), "--print-limit", "20"]
        command += [sys.executable, "-m", PROGRAM, *FEW.get(tool, [])]
        outcomes[tool] = evaluate(execute(command, limit=share, log=log, environment=ENVIRONMENT), share)
    return combine(outcomes)


def evaluate(done: Finished, limit: float) -> Outcome:
    """The outcome of one tool. It passes only if the program reached its end."""
    found = SUMMARY.findall(done.output)
    summary = found[-1].lstrip("= ") if found else None
    details = {"summary": summary} if summary else {}
    clean = summary is not None and re.search(r"SUMMARY: 0 (?:errors|hazards)", summary) is not None
    if done.code == 0 and clean and COMPLETED in done.output and not done.timed_out:
        return Outcome(PASSED, None, details)
    by_tool = "\n".join(line for line in done.output.splitlines() if line.startswith("====") or "rror" in line)
    refusal = REFUSAL.search(by_tool)
    if refusal and STARTED not in done.output:
        return Outcome(NOT_RUN, refusal[0].lstrip("= ").strip(), details)
    if summary and not clean:
        return Outcome(FAILED, summary, details)
    if done.timed_out:
        return Outcome(NOT_RUN, f"no result after {limit:.0f} s", details)
    return Outcome(FAILED, done.ending, details)


def combine(outcomes: dict[str, Outcome]) -> Outcome:
    """Failed if a tool failed, else not run if one did not run."""
    details = {tool: {"status": one.status, "reason": one.reason, **one.details} for tool, one in outcomes.items()}
    for status in (FAILED, NOT_RUN):
        reasons = [f"{tool} {status}: {one.reason}" for tool, one in outcomes.items() if one.status == status]
        if reasons:
            return Outcome(status, "; ".join(reasons), details)
    return Outcome(PASSED, None, details)
