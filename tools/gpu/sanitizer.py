"""compute-sanitizer over few calls; a tool that the host refuses is recorded as not run, with its words."""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from pathlib import Path

from tools.gpu.execute import Finished, execute
from tools.gpu.record import FAILED, NOT_RUN, PASSED, Outcome

TOOLS = ("memcheck", "initcheck", "synccheck", "racecheck")  # the slowest last: it gets what the others leave
FOUND_ERRORS = 86  # the exit code that we ask for
PROGRAM = "tests.gpu.exercise"
FEW = {"racecheck": ["--few"]}  # gave no result in 31 s on an H100, where the others take 5 s each
COMPLETED = "exercise completed"  # what the program prints last
# Every allocation by itself: inside torch's large blocks an access beyond a tensor would go unseen.
ENVIRONMENT = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
SUMMARY = re.compile(r"^=+ (?:\w+ )?SUMMARY: .*$", re.MULTILINE)
REFUSAL = re.compile(
    r"^.*(?:not supported|unsupported|unable to|failed to init|internal sanitizer|permission|LibraryNotLoaded"
    r"|insufficient|not available).*$",
    re.MULTILINE | re.IGNORECASE,
)


def find_tool() -> str | None:
    found = shutil.which("compute-sanitizer")
    if found:
        return found
    for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"):
        if home and (Path(home) / "bin" / "compute-sanitizer").exists():
            return str(Path(home) / "bin" / "compute-sanitizer")
    return None


def run(*, limit: float, log: Path) -> Outcome:
    """All four tools, each within its share of the time that is left."""
    sanitizer = find_tool()
    if sanitizer is None:
        return Outcome(NOT_RUN, "compute-sanitizer is not installed")
    outcomes: dict[str, Outcome] = {}
    started = time.monotonic()
    for index, tool in enumerate(TOOLS):
        share = (limit - (time.monotonic() - started)) / (len(TOOLS) - index)
        command = [sanitizer, "--tool", tool, "--error-exitcode", str(FOUND_ERRORS), "--print-limit", "20"]
        done = execute(
            [*command, sys.executable, "-m", PROGRAM, *FEW.get(tool, [])], limit=share, log=log, environment=ENVIRONMENT
        )
        outcomes[tool] = evaluate(done, share)
    return combine(outcomes)


def evaluate(done: Finished, limit: float) -> Outcome:
    """What one tool found; passed only if the program ran to its end under it, and it says so itself."""
    summary = SUMMARY.findall(done.output)
    details = {"summary": summary[-1].lstrip("= ")} if summary else {}
    clean = bool(summary) and re.search(r"SUMMARY: 0 (?:errors|hazards)", summary[-1]) is not None
    completed = COMPLETED in done.output
    if done.code == 0 and clean and completed and not done.timed_out:
        return Outcome(PASSED, None, details)
    refusal = REFUSAL.search(_of_the_tool(done.output))
    # Refused: the program never got to its first call.
    if refusal and "exercise started" not in done.output:
        return Outcome(NOT_RUN, refusal[0].lstrip("= ").strip(), details)
    if summary and not clean:
        return Outcome(FAILED, details["summary"], details)
    if done.timed_out:
        return Outcome(NOT_RUN, f"no result after {limit:.0f} s", details)
    last = done.output.strip().splitlines()[-1:] or ["no output"]
    return Outcome(FAILED, f"exit code {done.code}: {last[0]}", details)


def _of_the_tool(output: str) -> str:
    return "\n".join(line for line in output.splitlines() if line.startswith("====") or "rror" in line)


def combine(outcomes: dict[str, Outcome]) -> Outcome:
    """Failed if a tool failed, else not run if one did not run."""
    details = {
        tool: {"status": outcome.status, "reason": outcome.reason, **outcome.details}
        for tool, outcome in outcomes.items()
    }
    for status in (FAILED, NOT_RUN):
        found = [f"{tool} {status}: {o.reason}" for tool, o in outcomes.items() if o.status == status]
        if found:
            return Outcome(status, "; ".join(found), details)
    return Outcome(PASSED, None, details)
