"""The stages, in the order in which they run."""

from __future__ import annotations

import json
import os
import shutil
import sys
import sysconfig
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.compiled.tables import FILE_NAME as COMPILED_FILE_NAME
from benchmarks.gpu import sanitizer
from benchmarks.gpu.document import Gpu
from benchmarks.gpu.execute import execute
from benchmarks.gpu.pytests import is_installed, run_pytest
from benchmarks.gpu.record import FAILED, NOT_RUN, PASSED, Outcome
from benchmarks.kernels.results import FILE_NAME
from benchmarks.models import document as models_document
from benchmarks.running import NO_TIME, OUT_OF_TIME
from benchmarks.scaling.document import FILE_NAME as SCALING_FILE_NAME

END = 15  # seconds in which the case that runs at the limit can end, and tables and pictures be made
SCALING_LIMIT = 60.0  # seconds
COMPILED_LIMIT = 165.0  # what its cases take together


@dataclass(frozen=True)
class Context:
    """What a stage gets: the GPU, where results go, until when it may run, and where files to go on from may be."""

    gpu: Gpu
    folder: Path
    limit: float
    quick: bool = False
    resume: Path | None = None

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"


Stage = Callable[[Context], Outcome]


def build(context: Context) -> Outcome:
    missing = [package for package in ("setuptools", "pybind11") if not is_installed(package)]
    places = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
    missing += [tool for tool in ("cmake", "ninja") if shutil.which(tool, path=places) is None]
    if missing:
        return Outcome(NOT_RUN, f"needs {', '.join(missing)}, not installed")
    archs = context.gpu["capability"].replace(".", "")
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
    # What needs no GPU runs in every `make test`.
    return run_pytest(["--tier=normal", "-m", "gpu and not large"], limit=context.limit, log=context.log, parallel=True)


def sanitize(context: Context) -> Outcome:
    return sanitizer.run(limit=context.limit, log=context.log)


def graphs(context: Context) -> Outcome:
    files = ["tests/gpu/test_graphs.py", "tests/gpu/test_streams.py"]
    return run_pytest(files, limit=context.limit, log=context.log)


def large(context: Context) -> Outcome:
    return run_pytest(["-m", "large", "-k", "cuda", "tests/unit/test_large.py"], limit=context.limit, log=context.log)


def bench(context: Context) -> Outcome:
    return _measure(context, "benchmarks.gpu.bench", FILE_NAME)


def scaling(context: Context) -> Outcome:
    limited = replace(context, limit=min(context.limit, SCALING_LIMIT + END))
    return _measure(limited, "benchmarks.scaling", SCALING_FILE_NAME, "--device", "cuda")


def compiled(context: Context) -> Outcome:
    if not is_installed("torchvision"):
        return Outcome(NOT_RUN, "needs torchvision, not installed")
    limited = replace(context, limit=min(context.limit, COMPILED_LIMIT + END))
    return _measure(limited, "benchmarks.compiled", COMPILED_FILE_NAME, "--device", "cuda")


def models(context: Context) -> Outcome:
    if not is_installed("torchvision"):
        return Outcome(NOT_RUN, "needs torchvision, not installed")
    return _measure(context, "benchmarks.models", models_document.FILE_NAME, "--device", "cuda")


def _measure(context: Context, module: str, file_name: str, *options: str) -> Outcome:
    """A suite that ends by itself in time: the limit is one for beginning cases."""
    limit = max(context.limit - END, 1)
    command = [sys.executable, "-m", module, *options, "--out", str(context.folder), "--limit", f"{limit:g}"]
    if context.resume is not None and (context.resume / file_name).exists():
        command += ["--resume", str(context.resume / file_name)]
    path = context.folder / file_name
    before = path.stat().st_mtime_ns if path.exists() else None
    done = execute([*command, "--quick"] if context.quick else command, limit=context.limit, log=context.log)
    written = path.exists() and path.stat().st_mtime_ns != before
    found = json.loads(path.read_text()) if written else {"failures": [], "rows": []}
    failures = found["failures"]
    details = {"rows": len(found["rows"]), "not measured": failures, "missing": found.get("missing", [])}
    if done.timed_out:
        return Outcome(FAILED, f"stopped after {context.limit:.0f} s", details)
    if done.code == OUT_OF_TIME:
        return Outcome(FAILED, f"not all cases within {limit:.0f} s", details)
    if done.code != 0 or not written:
        last = done.output.strip().splitlines()[-1:] or ["no output"]
        return Outcome(FAILED, f"exit code {done.code}: {last[0]}", details)
    failures = [f for f in failures if f["reason"] != NO_TIME]
    ours = [f for f in failures if f["implementation"] is None or f["implementation"].startswith("dreluop")]
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
    "scaling": scaling,
    "compiled": compiled,
    "models": models,
}
