"""The stages, in the order in which they run."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu import sanitizer
from benchmarks.gpu.document import Card
from benchmarks.gpu.execute import execute
from benchmarks.gpu.pytests import is_installed, run_pytest
from benchmarks.gpu.record import FAILED, NOT_RUN, PASSED, Outcome
from benchmarks.kernels.results import FILE_NAME
from benchmarks.models import document as models_document
from benchmarks.models.attempts import NO_TIME

MODELS_RESERVE = 20.0  # seconds for its start, and for what a case takes longer than thought


@dataclass(frozen=True)
class Context:
    """What a stage gets: the card, where results go, and until when it may run."""

    card: Card
    folder: Path
    limit: float
    quick: bool = False

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"


Stage = Callable[[Context], Outcome]


def build(context: Context) -> Outcome:
    missing = [package for package in ("setuptools", "pybind11") if not is_installed(package)]
    if missing:
        return Outcome(NOT_RUN, f"needs {', '.join(missing)}, not installed")
    archs = context.card["capability"].replace(".", "")
    environment = {"DRELUOP_BUILD": "cuda", "DRELUOP_CUDA_ARCHS": archs}
    started = time.monotonic()
    done = execute(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        limit=context.limit,
        log=context.log,
        environment=environment,
    )
    details = {"build seconds": round(time.monotonic() - started, 1), "archs": archs, "cores": os.cpu_count()}
    if done.timed_out:
        return Outcome(FAILED, f"stopped after {context.limit:.0f} s", details)
    if done.code != 0:
        last = done.output.strip().splitlines()[-1:] or ["no output"]
        return Outcome(FAILED, f"setup.py ended with exit code {done.code}: {last[0]}", details)
    return Outcome(PASSED, None, details)


def smoke(context: Context) -> Outcome:
    return run_pytest(["tests/gpu/test_smoke.py"], limit=context.limit, log=context.log)


def tests(context: Context) -> Outcome:
    return run_pytest(["-m", "not large"], limit=context.limit, log=context.log, parallel=True)


def sanitize(context: Context) -> Outcome:
    return sanitizer.run(limit=context.limit, log=context.log)


def graphs(context: Context) -> Outcome:
    files = ["tests/gpu/test_graphs.py", "tests/gpu/test_streams.py"]
    return run_pytest(files, limit=context.limit, log=context.log)


def large(context: Context) -> Outcome:
    return run_pytest(["-m", "large", "-k", "cuda", "tests/test_large.py"], limit=context.limit, log=context.log)


def bench(context: Context) -> Outcome:
    return _benchmark(context, ["benchmarks.gpu.bench"], FILE_NAME)


def models(context: Context) -> Outcome:
    if not is_installed("torchvision"):
        return Outcome(NOT_RUN, "needs torchvision, not installed")
    # It ends by itself with what it has, before it would be stopped.
    limit = max(1.0, context.limit - MODELS_RESERVE)
    module = ["benchmarks.models", "--device", "cuda", "--limit", f"{limit:.0f}"]
    outcome = _benchmark(context, module, models_document.FILE_NAME)
    if outcome.status == PASSED and not outcome.details["complete"]:
        return Outcome(NOT_RUN, "there was no time for all cases", outcome.details)
    return outcome


def _benchmark(context: Context, module: list[str], file_name: str) -> Outcome:
    command = [sys.executable, "-m", *module, "--out", str(context.folder)]
    done = execute([*command, "--quick"] if context.quick else command, limit=context.limit, log=context.log)
    path = context.folder / file_name
    if done.code != 0 or done.timed_out or not path.exists():
        last = done.output.strip().splitlines()[-1:] or ["no output"]
        reason = f"stopped after {context.limit:.0f} s" if done.timed_out else f"exit code {done.code}: {last[0]}"
        return Outcome(FAILED, reason)
    found = json.loads(path.read_text())
    failures = [f for f in found["failures"] if f["reason"] != NO_TIME]
    ours = [f for f in failures if f["contender"] is None or f["contender"].startswith("dreluop")]
    details = {"not measured": found["failures"], "complete": found["complete"], "missing": found.get("missing", [])}
    if ours:
        dtype = f", {ours[0]['dtype']}" if "dtype" in ours[0] else ""
        return Outcome(FAILED, f"{ours[0]['case']}{dtype}: {ours[0]['reason']}", details)
    return Outcome(PASSED, None, details)


STAGES: dict[str, Stage] = {
    "build": build,
    "smoke": smoke,
    "tests": tests,
    "sanitize": sanitize,
    "graphs": graphs,
    "large": large,
    "bench": bench,
    "models": models,
}
