"""What setup.py builds, and what it says when it cannot."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
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


def test_unknown_choice_for_autograd_is_named():
    done = setup_py(DRELUOP_AUTOGRAD="cpp")
    assert done.returncode != 0
    assert "DRELUOP_AUTOGRAD=cpp is not one of auto, compiled, python." in done.stderr


# Compiles nothing, and refuses one file, as another torch may make it.
COMPILER = """#!/bin/sh
case "$*" in *" -c "*csrc/autograd/*) echo "error: no member named Node" >&2; exit 1 ;; esac
while [ "$1" != -o ]; do shift; done
: > "$2"
"""


@pytest.fixture
def build_in_place(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """setup.py with that compiler, in a copy of the sources where a library for another torch lies from before."""
    compiler = tmp_path / "g++"
    compiler.write_text(COMPILER)
    compiler.chmod(0o755)
    for name in ("csrc", "dreluop"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "dreluop" / f"_autograd{sysconfig.get_config_var('EXT_SUFFIX')}").write_text("of another torch")

    def run(**choices: str) -> subprocess.CompletedProcess[str]:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("DRELUOP", "LDSHARED", "LDCXXSHARED"))}
        env |= {"CXX": str(compiler), "DRELUOP_BUILD": "cpu"} | choices
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)

    return run


def libraries_in(folder: Path) -> set[str]:
    return {path.name.partition(".")[0] for path in (folder / "dreluop").glob("*.so")}


def test_a_torch_whose_autograd_has_changed_is_gone_on_without(build_in_place, tmp_path):
    done = build_in_place()
    assert done.returncode == 0, done.stderr
    assert "error: no member named Node" in done.stderr
    assert "building without dreluop._autograd" in done.stderr
    assert libraries_in(tmp_path) == {"_ops", "_C"}


def test_unless_it_was_asked_for(build_in_place):
    done = build_in_place(DRELUOP_AUTOGRAD="compiled")
    assert done.returncode != 0
    assert "compiling csrc/autograd/capped_relu.cpp failed" in done.stderr
    assert "Traceback" not in done.stderr


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
