"""What setup.py builds, and what it says when it cannot."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def setup_py(*, hide: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """`setup.py --version`: decides everything, compiles nothing; `hide` makes a module impossible to import."""
    hidden = f"sys.modules[{hide!r}] = None; " if hide else ""
    program = f"import sys, runpy; {hidden}sys.argv = ['setup.py', '--version']; runpy.run_path('setup.py')"
    # From the root and not isolated: setup.py must work where pip runs it.
    env = {k: v for k, v in os.environ.items() if k not in ("CXX", "DRELUOP_BUILD", "CUDA_HOME", "CUDA_PATH")}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, cwd=ROOT, env=env | environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("choice", ["auto", "cpu", "none"])
def test_choices_are_accepted(choice):
    done = setup_py(DRELUOP_BUILD=choice)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == "0.1.0"


def test_unknown_choice_is_named():
    done = setup_py(DRELUOP_BUILD="gpu")
    assert done.returncode != 0
    assert "DRELUOP_BUILD=gpu is not one of auto, cuda, cpu, none." in done.stderr


def test_missing_compiler_is_one_clear_sentence():
    done = setup_py(CXX="/nowhere/g++")
    assert done.returncode != 0
    assert "no C++ compiler was found" in done.stderr
    assert "DRELUOP_BUILD=none" in done.stderr
    assert "Traceback" not in done.stderr


def test_pure_build_needs_no_compiler_and_no_torch():
    assert setup_py(CXX="/nowhere/g++", DRELUOP_BUILD="none", hide="torch").returncode == 0


def test_isolated_build_stops_with_the_right_command():
    done = setup_py(hide="torch")
    assert done.returncode != 0
    assert "pip install --no-build-isolation ." in done.stderr
    assert "Traceback" not in done.stderr


def test_missing_pybind11_is_named():
    done = setup_py(hide="pybind11.setup_helpers")
    assert done.returncode != 0
    assert "pybind11 is missing" in done.stderr


@pytest.mark.skipif(
    Path("/usr/local/cuda/bin/nvcc").exists(), reason="nvcc is found at its default place whatever PATH"
)
def test_cuda_without_nvcc_is_an_error_and_auto_is_not(tmp_path):
    compiler = tmp_path / "g++"
    compiler.symlink_to(shutil.which("g++") or "/usr/bin/g++")
    environment = {"PATH": str(tmp_path), "CXX": "g++"}
    done = setup_py(DRELUOP_BUILD="cuda", **environment)
    assert done.returncode != 0
    assert "nvcc was not found" in done.stderr
    assert setup_py(DRELUOP_BUILD="auto", **environment).returncode == 0


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="without nvcc no CUDA architecture is asked for")
def test_bad_cuda_archs_are_named():
    done = setup_py(DRELUOP_CUDA_ARCHS="hopper")
    assert done.returncode != 0
    assert "DRELUOP_CUDA_ARCHS=hopper" in done.stderr
    old = setup_py(DRELUOP_CUDA_ARCHS="75;90")
    assert old.returncode != 0
    assert "DRELUOP_CUDA_ARCHS=75;90: the kernels need 80 or newer" in old.stderr


def test_pure_wheel_works_and_says_why_it_is_slow(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-w", tmp_path / "wheel", "."]
    source = shutil.copytree(
        ROOT, tmp_path / "source", ignore=shutil.ignore_patterns(".*", "build", "*.so", "*.egg-info", "results")
    )
    subprocess.run(command, cwd=source, env=os.environ | {"DRELUOP_BUILD": "none"}, check=True, capture_output=True)
    (wheel,) = (tmp_path / "wheel").glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".so")]
        archive.extractall(tmp_path / "installed")
    done = subprocess.run(
        [sys.executable, "-m", "dreluop"],
        cwd=tmp_path / "installed",
        env={k: v for k, v in os.environ.items() if not k.startswith(("DRELUOP", "PYTHONPATH"))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "_ops.abi3.so does not exist" in done.stdout
    assert "only the reference serves" in done.stdout
