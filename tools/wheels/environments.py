"""A wheel in a fresh environment without a compiler: what it needs, its import time, and the operator tests."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.gpu.pytests import read_report
from tools.wheels import symbols
from tools.wheels.build import ROOT
from tools.wheels.document import LIBRARY, Row

NEWEST = "newest"
# The reference is the same Python everywhere.
TESTS = ("tests/ops", "-k", "not reference")
TEST_PACKAGES = ("numpy", "pytest", "hypothesis", "expecttest")
COMPILERS = ("cc", "c++", "gcc", "g++", "clang", "clang++", "nvcc")
IMPORTS = 5
# Variables that could lead to a compiler or to another dreluop.
DROPPED_VARIABLES = ("PYTHON", "DRELUOP_", "CUDA_", "PYENV_", "VIRTUAL_ENV", "PYTEST_", "CONDA")
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


class FailedError(Exception):
    """What went wrong in an environment; the message ends with the output of the command."""


class Environment:
    """A new virtual environment in a folder, which processes see without any compiler.

    Args:
        interpreter: a path, or a name on PATH.
        folder: for the environment, and for a copy of the tests without the package beside them.
    """

    def __init__(self, interpreter: str, folder: Path) -> None:
        self.root, self.work = folder / "environment", folder / "work"
        output([interpreter, "-m", "venv", str(self.root)])
        self.python = str(self.root / "bin" / "python")
        self.variables = variables(self.root / "bin")
        shutil.copytree(ROOT / "tests", self.work / "tests", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", self.work)

    def run(self, *arguments: str) -> str:
        return output([self.python, *arguments], self.variables, self.work)

    def install(self, torch: str, wheels: Path) -> None:
        # --no-compile: dreluop imports little of torch, and the first import of a file writes its bytecode.
        pip = ("-m", "pip", "--disable-pip-version-check", "install", "-q", "--only-binary", ":all:", "--no-compile")
        wanted = "torch" if torch == NEWEST else f"torch=={torch}"
        self.run(*pip, "-c", str(ROOT / "constraints" / "base.txt"), wanted, *TEST_PACKAGES)
        self.run(*pip, "--no-index", "--find-links", str(wheels), "dreluop")


def run_case(python: str, torch: str, wheels: Path, *, tests: Sequence[str] = TESTS) -> Row:
    """Make an environment, try the wheel of ``wheels`` that fits it, and remove the environment.

    Nothing is raised for what fails in the environment: the row holds it.

    Args:
        python: an interpreter, by its path or its name on PATH.
        torch: a version, or ``NEWEST`` for what pip chooses.
    """
    row = Row(torch=torch, tests=list(tests), import_processes=IMPORTS)
    with tempfile.TemporaryDirectory(prefix="wheel-") as scratch:
        try:
            row.python = output([python, "-c", "import platform; print(platform.python_version())"])
            environment = Environment(python, Path(scratch))
            environment.install(torch, wheels)
            _check(environment, wheels, row)
            row.self_check = environment.run("-m", "dreluop").splitlines()[-1]
            _time_imports(environment, row)
            _run_tests(environment, row)
        except FailedError as failure:
            row.failure = str(failure)
    return row


def _check(environment: Environment, wheels: Path, row: Row) -> None:
    """That the wheel was installed, and that its libraries load."""
    facts: dict[str, Any] = json.loads(environment.run("-c", FACTS, *COMPILERS))
    row.python, row.torch, row.compilers = facts["python"], facts["torch"], facts["compilers"]
    installed = Path(facts["dreluop"]).parent
    if not installed.is_relative_to(environment.root):
        raise FailedError(f"dreluop came from {installed}, not from the wheel")
    if row.compilers:
        raise FailedError(f"the environment finds {', '.join(row.compilers)}")
    row.wheel = wheel_of(installed, wheels)
    if (library := installed.parent / LIBRARY).exists():
        has = symbols.exported(Path(facts["torch_lib"]).glob("*.so*"))
        row.missing_symbols = [name for name in symbols.needed(library) if name not in has]
        if facts["load_error"] is not None:
            raise FailedError(f"the compiled operators do not load: {facts['load_error']}")
        if facts["node_error"] is not None:
            raise FailedError(f"the C++ autograd node is not available: {facts['node_error']}")
        environment.variables["DRELUOP_REQUIRE_NATIVE"] = "1"


def variables(bin_folder: Path) -> dict[str, str]:
    """This process's environment variables, without any compiler."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(DROPPED_VARIABLES)}
    return kept | {"PATH": str(bin_folder), "CC": "/bin/false", "CXX": "/bin/false"}


def wheel_of(installed: Path, wheels: Path) -> str:
    """The file that pip took: the one with the tag that the installed metadata names."""
    (metadata,) = installed.parent.glob("dreluop-*.dist-info")
    tags = [line.split()[1] for line in (metadata / "WHEEL").read_text().splitlines() if line.startswith("Tag:")]
    (name,) = [path.name for path in wheels.glob("*.whl") if any(path.name.endswith(f"-{tag}.whl") for tag in tags)]
    return name


def _time_imports(environment: Environment, row: Row) -> None:
    # The first process writes the bytecode.
    times = [json.loads(environment.run("-c", IMPORT)) for _ in range(IMPORTS + 1)][1:]
    row.import_ms, row.import_cpu_ms = map(statistics.median, zip(*times, strict=True))
    row.load = os.getloadavg()[0]


def _run_tests(environment: Environment, row: Row) -> None:
    report = environment.work / "report.xml"
    began = time.monotonic()
    failure: FailedError | None = None
    try:
        environment.run("-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junit-xml={report}", *row.tests)
    except FailedError as error:
        failure = error
    row.test_seconds = time.monotonic() - began
    if report.exists():
        found = read_report(report)
        row.passed, row.failed, row.skipped = found["passed"], found["failed"], found["skipped"]
    if row.failed:
        raise FailedError(f"{len(row.failed)} tests failed, the first: {row.failed[0]}\n{failure}")
    if failure is not None or not row.passed:
        raise failure or FailedError("no test passed")


def output(command: list[str], environment: dict[str, str] | None = None, folder: Path | None = None) -> str:
    """What a command prints.

    Raises:
        FailedError: it could not be run, or ended with another code than 0.
    """
    try:
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    except OSError as error:
        raise FailedError(f"{command[0]}: {error}") from error
    if done.returncode != 0:
        said = (done.stdout + done.stderr)[-3000:]
        raise FailedError(f"{' '.join(command[:6])} ... ended with {done.returncode}: {said}")
    return done.stdout.strip()
