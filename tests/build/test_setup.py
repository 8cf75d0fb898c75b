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
CHANGED_BY_TESTS = ("DRELUOP", "CXX", "CUDA", "LDSHARED", "LDCXXSHARED", "CMAKE", "MAX_JOBS")
FOREIGN = {name: value for name, value in os.environ.items() if not name.startswith(CHANGED_BY_TESTS)}


@pytest.fixture
def setup_py(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """setup.py, building into a new folder, after a line of Python that changes what it finds."""

    def run(before: str = "pass", **environment: str) -> subprocess.CompletedProcess[str]:
        arguments = ["build_ext", "--build-lib", str(tmp_path / "lib"), "--build-temp", str(tmp_path / "objects")]
        # setuptools first: on a system that does not have its own Python, it could not be imported.
        program = f"import runpy, sys, setuptools.command.build_ext; {before}; sys.argv[1:] = {arguments}\n"
        program += "runpy.run_path('setup.py', run_name='__main__')"
        # From the root and not isolated: setup.py must work where pip runs it.
        command = [sys.executable, "-c", program]
        return subprocess.run(command, cwd=ROOT, env=FOREIGN | environment, capture_output=True, text=True, check=False)

    return run


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    """What a build that stopped says last."""
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


def test_unknown_choices_are_named(setup_py):
    assert sentence(setup_py(DRELUOP_BUILD="gpu")) == "dreluop: DRELUOP_BUILD=gpu is not one of auto, cuda, cpu, none."
    said = sentence(setup_py(DRELUOP_AUTOGRAD="cpp"))
    assert said == "dreluop: DRELUOP_AUTOGRAD=cpp is not one of auto, compiled, python."


# Compiles an empty file for each source; and refuses one of them if asked, as another torch may make it.
COMPILER = """#!/bin/sh
case "$*" in *" -c "*/csrc/autograd/*) [ -z "$CHANGED" ] || { echo "error: no member named Node" >&2; exit 1; } ;; esac
for argument; do
  shift
  case "$argument" in
    */csrc/*.cpp) set -- "$@" -x c++ /dev/null ;;
    *) set -- "$@" "$argument" ;;
  esac
done
exec g++ "$@"
"""


@pytest.fixture
def build_in_place(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """setup.py with that compiler, in a copy of the sources where a library for another torch lies from before."""
    compiler = tmp_path / "compiler"
    compiler.write_text(COMPILER)
    compiler.chmod(0o755)
    for name in ("cmake", "csrc", "dreluop"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "dreluop" / f"_autograd{sysconfig.get_config_var('EXT_SUFFIX')}").write_text("of another torch")

    def run(**environment: str) -> subprocess.CompletedProcess[str]:
        env = FOREIGN | {"CXX": str(compiler), "DRELUOP_BUILD": "cpu"} | environment
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)

    return run


def libraries_in(folder: Path) -> set[str]:
    return {path.name for path in (folder / "dreluop").glob("*.so")}


ENDING = sysconfig.get_config_var("EXT_SUFFIX")


def test_a_torch_whose_autograd_has_changed_is_gone_on_without(build_in_place, tmp_path):
    done = build_in_place(CHANGED="1")
    assert done.returncode == 0, done.stderr
    assert "error: no member named Node" in done.stdout
    assert "building without dreluop._autograd" in done.stderr
    assert libraries_in(tmp_path) == {"_ops.abi3.so", f"_C{ENDING}"}
    # The next one compiles it, and of the rest nothing.
    done = build_in_place()
    assert done.returncode == 0, done.stderr
    assert "capped_relu.cpp" in done.stdout
    assert "ops_cpu.cpp" not in done.stdout
    assert libraries_in(tmp_path) == {"_ops.abi3.so", f"_C{ENDING}", f"_autograd{ENDING}"}


def test_unless_it_was_asked_for(build_in_place):
    done = build_in_place(CHANGED="1", DRELUOP_AUTOGRAD="compiled")
    assert sentence(done) == "dreluop: the build failed; the compiler's message is above."
    assert "error: no member named Node" in done.stdout


def test_missing_compiler_is_one_clear_sentence(setup_py):
    said = sentence(setup_py(CXX="/nowhere/g++"))
    assert "no C++ compiler was found" in said
    assert "DRELUOP_BUILD=none" in said


def test_pure_build_needs_no_compiler_and_no_torch(setup_py, tmp_path):
    done = setup_py("sys.modules['torch'] = None", CXX="/nowhere/g++", DRELUOP_BUILD="none")
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())


def test_isolated_build_stops_with_the_right_command(setup_py):
    said = sentence(setup_py("sys.modules['torch'] = None"))
    assert "pip install --no-build-isolation ." in said


@pytest.mark.parametrize(
    ("before", "said"),
    [
        ("sys.modules['pybind11'] = None", "pybind11 is missing: run pip install 'pybind11>=3.0' first"),
        ("setuptools.__version__ = '76.1'", "setuptools 76.1 is too old: run pip install"),
        (
            "sys.path.insert(0, 'cmake'); import requirements; requirements.CMAKE = (99, 1)",
            "cmake 99.1 or newer was not found",
        ),
        (
            "sys.path.insert(0, 'cmake'); import requirements; requirements.NINJA = (99, 1)",
            "ninja 99.1 or newer was not found",
        ),
    ],
)
def test_what_is_missing_or_too_old_is_named(setup_py, before, said):
    assert said in sentence(setup_py(before))


def test_an_old_torch_is_named(setup_py, tmp_path):
    (tmp_path / "torch.py").write_text("class _C: _GLIBCXX_USE_CXX11_ABI = True\n__version__ = '2.9.1+cpu'\n")
    said = sentence(setup_py(PYTHONPATH=str(tmp_path), DRELUOP_BUILD="cpu"))
    assert said == "dreluop: torch 2.9.1+cpu is too old: dreluop needs torch 2.10 or newer."


def test_a_system_other_than_linux_gets_pure_python(setup_py, tmp_path):
    done = setup_py("sys.platform = 'darwin'")
    assert done.returncode == 0, done.stderr
    assert "no compiled part for darwin, only for Linux; pure Python is installed" in done.stderr
    assert not list(tmp_path.iterdir())
    assert "builds on Linux only, not on darwin" in sentence(setup_py("sys.platform = 'darwin'", DRELUOP_BUILD="cpu"))


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
