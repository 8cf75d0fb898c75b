"""The stages of `make gpu`, in the order in which they run."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.__main__ import bench_of
from benchmarks.harness import records
from benchmarks.harness.cli import OUT_OF_TIME
from benchmarks.harness.machine import Gpu
from benchmarks.harness.records import NO_TIME
from tools.gpu import sanitizer
from tools.gpu.execute import Finished, execute
from tools.gpu.pytests import is_installed, run_pytest
from tools.gpu.record import NOT_RUN, Outcome, outcome

LIMIT = 530.0  # seconds: under nine minutes
END = 15  # seconds for the case that runs at the limit to end, and for tables and pictures
PROGRAMS = ("cmake", "ninja")
# These folders need packages that the GPU machine may lack, and have no GPU tests.
WITHOUT_GPU_TESTS = ("tests/benchmarks", "tests/examples", "tests/studies", "tests/tools")


@dataclass(frozen=True)
class Context:
    """The GPU, the folder for results, the seconds that are left, and the folder of the files to resume from."""

    gpu: Gpu
    folder: Path
    limit: float
    quick: bool = False
    resume: Path | None = None

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"


@dataclass(frozen=True)
class Stage:
    """A stage runs for at most ``limit`` seconds, and only where the packages and programs that it needs are there."""

    run: Callable[[Context], Outcome]
    needs: tuple[str, ...] = ()
    limit: float = LIMIT

    def __call__(self, context: Context) -> Outcome:
        missing = [name for name in self.needs if not _is_available(name)]
        if missing:
            return Outcome(NOT_RUN, f"needs {', '.join(missing)}, not installed")
        return self.run(replace(context, limit=min(context.limit, self.limit)))


def _is_available(name: str) -> bool:
    if name in PROGRAMS:
        folders = (sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath))
        return shutil.which(name, path=os.pathsep.join(folders)) is not None
    return is_installed(name)


def build(context: Context) -> Outcome:
    archs = context.gpu["capability"].replace(".", "")
    started = time.monotonic()
    done = execute(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        limit=context.limit,
        log=context.log,
        environment={"DRELUOP_BUILD": "cuda", "DRELUOP_CUDA_ARCHS": archs},
    )
    details = {"build seconds": round(time.monotonic() - started, 1), "archs": archs, "cores": os.cpu_count()}
    if done.timed_out:
        return outcome(f"stopped after {context.limit:.0f} s", details)
    return outcome(f"setup.py ended with {done.ending}" if done.code != 0 else None, details)


def tests(*arguments: str, parallel: bool = False) -> Callable[[Context], Outcome]:
    return lambda context: run_pytest(arguments, limit=context.limit, log=context.log, parallel=parallel)


def benchmark(name: str) -> Callable[[Context], Outcome]:
    """A benchmark that ends by itself in time: its limit is one for beginning cases."""

    def run(context: Context) -> Outcome:
        bench = bench_of(name)
        limit = max(context.limit - END, 1)
        path = context.folder / bench.file_name
        out = ["--device", "cuda", "--out", str(context.folder), "--limit", f"{limit:g}"]
        command = [sys.executable, "-m", "benchmarks", name, *out]
        if context.resume is not None and (context.resume / bench.file_name).exists():
            command += ["--resume", str(context.resume)]
        if context.quick:
            command.append("--quick")
        before = _modified(path)
        done = execute(command, limit=context.limit, log=context.log)
        written = _modified(path) != before
        record = records.load(path) if written else records.Record([])
        failures = [{**failure["key"], "reason": failure["failure"]} for failure in record.failures]
        missing = bench.missing(record) if written else []
        details = {"rows": len(record.rows), "not measured": failures, "missing": missing}
        if done.timed_out:
            return outcome(f"stopped after {context.limit:.0f} s", details)
        if done.code == OUT_OF_TIME:
            return outcome(f"not all cases within {limit:.0f} s", details)
        return outcome(_why_failed(done, written, failures), details)

    return run


def _modified(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.exists() else None


def _why_failed(done: Finished, written: bool, failures: list[dict[str, Any]]) -> str | None:
    """The command failed, or one of our implementations could not be measured. Others may fail."""
    if done.code != 0 or not written:
        return done.ending
    for failure in failures:
        implementation = failure.get("implementation")
        ours = implementation is None or implementation.startswith("dreluop")
        if ours and failure["reason"] != NO_TIME:
            return f"{failure['case']}: {failure['reason']}"
    return None


def sanitize(context: Context) -> Outcome:
    return sanitizer.run(limit=context.limit, log=context.log)


GPU_TESTS = ("--tier=normal", "-m", "gpu and not large", *(f"--ignore={folder}" for folder in WITHOUT_GPU_TESTS))
STAGES: dict[str, Stage] = {
    "build": Stage(build, needs=("setuptools", "pybind11", *PROGRAMS)),
    "smoke": Stage(tests("tests/gpu/test_smoke.py")),
    "tests": Stage(tests(*GPU_TESTS, parallel=True)),
    "sanitize": Stage(sanitize),
    "graphs": Stage(tests("tests/gpu/test_graphs.py", "tests/gpu/test_streams.py")),
    "large": Stage(tests("--tier=full", "-m", "large", "-k", "cuda", "tests/unit/test_large.py")),
    "bench": Stage(benchmark("kernels")),
    "scaling": Stage(benchmark("scaling"), limit=60 + END),
    "batch-norm": Stage(benchmark("batch-norm-gpu"), limit=60 + END),
    # Its limit is what its cases take together.
    "compiled": Stage(benchmark("compiled"), needs=("torchvision",), limit=165 + END),
    "models": Stage(benchmark("models"), needs=("torchvision",)),
}
