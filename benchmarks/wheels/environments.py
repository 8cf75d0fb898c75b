"""A wheel in a fresh environment without a compiler: what it needs, how long its import takes, the operator tests."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.pytests import read_report
from benchmarks.harness import machine
from benchmarks.wheels import symbols
from benchmarks.wheels.document import LIBRARY, Row

ROOT = Path(__file__).parents[2]
NEWEST = "newest"
# The reference is the same Python everywhere.
TESTS = ("tests/ops", "-k", "not reference")
TEST_PACKAGES = ("numpy", "pytest", "hypothesis", "expecttest")
COMPILERS = ("cc", "c++", "gcc", "g++", "clang", "clang++", "nvcc")
IMPORTS = 5
# Where a compiler, or another dreluop, could come from.
LEFT_OUT = ("PYTHON", "DRELUOP_", "CUDA_", "PYENV_", "VIRTUAL_ENV", "PYTEST_", "CONDA")

FACTS = """
import json, pathlib, platform, shutil, sys, torch, dreluop
from dreluop.autograd import fast_path
from dreluop.backends import native
print(json.dumps({
    "python": platform.python_version(), "torch": torch.__version__, "load_error": native.load_error,
    "dreluop": dreluop.__file__, "torch_lib": str(pathlib.Path(torch.__file__).parent / "lib"),
    "node_error": fast_path.reason if native.is_loaded() and not fast_path.of_another_torch() else None,
    "compilers": [name for name in sys.argv[1:] if shutil.which(name)],
}))
"""
IMPORT = """
import json, time, torch
wall, cpu = time.perf_counter(), time.process_time()
import dreluop
print(json.dumps([1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu)]))
"""


@dataclass(frozen=True)
class Case:
    """An interpreter (its path, or a name on PATH) and a version of torch, or ``NEWEST`` for what pip chooses."""

    python: str
    torch: str

    @property
    def name(self) -> str:
        return f"{Path(self.python).name}, torch {self.torch}"


class FailedError(Exception):
    """What went wrong in an environment; the message ends with what the command said."""


def run_case(case: Case, wheels: Path, *, tests: Sequence[str] = TESTS) -> Row:
    """Make the environment, try the wheel of ``wheels`` that fits it, and remove the environment.

    Nothing is raised for what fails in the environment: the row says it.
    """
    row: Row = {
        "python": "", "torch": case.torch, "wheel": None, "date": machine.now(), "failure": None, "compilers": [],
        "missing_symbols": [], "self_check": None, "tests": list(tests), "passed": 0, "failed": [], "skipped": {},
        "test_seconds": None, "import_ms": None, "import_cpu_ms": None, "import_processes": IMPORTS, "load": None,
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="wheel-") as scratch:
        try:
            row["python"] = _output([case.python, "-c", "import platform; print(platform.python_version())"])
            _try(case, wheels, tests, Path(scratch), row)
        except FailedError as failure:
            row["failure"] = str(failure)
    return row


def _try(case: Case, wheels: Path, tests: Sequence[str], scratch: Path, row: Row) -> None:
    _output([case.python, "-m", "venv", str(scratch / "environment")])
    python, environment = scratch / "environment" / "bin" / "python", _environment(scratch / "environment" / "bin")
    install = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "-q", "--only-binary", ":all:"]
    # Of torch little is imported: the first import of each file writes its bytecode.
    install.append("--no-compile")
    torch = "torch" if case.torch == NEWEST else f"torch=={case.torch}"
    _output([*install, "-c", str(ROOT / "constraints" / "base.txt"), torch, *TEST_PACKAGES], environment)
    _output([*install, "--no-index", "--find-links", str(wheels), "dreluop"], environment)

    # The tests without the package beside them.
    work = scratch / "work"
    shutil.copytree(ROOT / "tests", work / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", work)
    facts: dict[str, Any] = json.loads(_output([str(python), "-c", FACTS, *COMPILERS], environment, work))
    row["python"], row["torch"], row["compilers"] = facts["python"], facts["torch"], facts["compilers"]
    installed = Path(facts["dreluop"]).parent
    if not installed.is_relative_to(scratch):
        raise FailedError(f"dreluop came from {installed}, not from the wheel")
    if facts["compilers"]:
        raise FailedError(f"the environment finds {', '.join(facts['compilers'])}")
    row["wheel"] = _wheel_of(installed, wheels)
    if (library := installed.parent / LIBRARY).exists():
        has = symbols.exported(Path(facts["torch_lib"]).glob("*.so*"))
        row["missing_symbols"] = [name for name in symbols.needed(library) if name not in has]
        if facts["load_error"] is not None:
            raise FailedError(f"the compiled operators do not load: {facts['load_error']}")
        if facts["node_error"] is not None:
            raise FailedError(f"the compiled autograd node does not serve: {facts['node_error']}")
        environment["DRELUOP_REQUIRE_NATIVE"] = "1"
    row["self_check"] = _output([str(python), "-m", "dreluop"], environment, work).splitlines()[-1]
    _time_imports(python, environment, work, row)
    _run_tests(python, environment, work, tests, row)


def _environment(bin_folder: Path) -> dict[str, str]:
    """This process's, without any compiler."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(LEFT_OUT)}
    return kept | {"PATH": str(bin_folder), "CC": "/bin/false", "CXX": "/bin/false"}


def _wheel_of(installed: Path, wheels: Path) -> str:
    """The file that pip took: the one with the tag that the installed metadata names."""
    (metadata,) = installed.parent.glob("dreluop-*.dist-info")
    tags = [line.split()[1] for line in (metadata / "WHEEL").read_text().splitlines() if line.startswith("Tag:")]
    (name,) = [path.name for path in wheels.glob("*.whl") if any(path.name.endswith(f"-{tag}.whl") for tag in tags)]
    return name


def _time_imports(python: Path, environment: dict[str, str], work: Path, row: Row) -> None:
    # The first process writes the bytecode.
    times = [json.loads(_output([str(python), "-c", IMPORT], environment, work)) for _ in range(IMPORTS + 1)][1:]
    row["import_ms"], row["import_cpu_ms"] = (statistics.median(one) for one in zip(*times, strict=True))
    row["load"] = os.getloadavg()[0]


def _run_tests(python: Path, environment: dict[str, str], work: Path, tests: Sequence[str], row: Row) -> None:
    report = work / "report.xml"
    command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junit-xml={report}", *tests]
    began = time.monotonic()
    done = subprocess.run(command, env=environment, cwd=work, capture_output=True, text=True, check=False)
    row["test_seconds"] = time.monotonic() - began
    if report.exists():
        found = read_report(report)
        row["passed"], row["failed"], row["skipped"] = found["passed"], found["failed"], found["skipped"]
    if row["failed"]:
        raise FailedError(f"{len(row['failed'])} tests failed, the first: {row['failed'][0]}\n{done.stdout[-3000:]}")
    if done.returncode != 0 or not row["passed"]:
        raise FailedError(f"pytest ended with exit code {done.returncode}: {(done.stdout + done.stderr)[-3000:]}")


def _output(command: list[str], environment: dict[str, str] | None = None, folder: Path | None = None) -> str:
    """What a command prints.

    Raises:
        FailedError: it could not be run, or ended with another code than 0.
    """
    try:
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    except OSError as error:
        raise FailedError(f"{command[0]}: {error}") from error
    if done.returncode != 0:
        raise FailedError(
            f"{' '.join(command[:6])} ... ended with {done.returncode}: {(done.stdout + done.stderr)[-3000:]}"
        )
    return done.stdout.strip()
