"""Which nvcc the build takes, and for which GPUs it compiles, however CMake is called."""

from __future__ import annotations

import ctypes
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dreluop.backends import native
from tests.build import machine_code
from tests.build.conftest import configure, find_tool

ROOT = Path(__file__).parents[2]
TARGETS = ("dreluop_ops", "dreluop_C", "dreluop_autograd")
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")

SCRIPT = """
cmake_minimum_required(VERSION 3.24)
function(dreluop_stop sentence)
  message(FATAL_ERROR " dreluop: ${{sentence}}")
endfunction()
set(DRELUOP_BUILD {build})
set(DRELUOP_CUDA_ARCHS "{archs}")
set(DRELUOP_NVCC {nvcc})
include({root}/cmake/cuda.cmake)
message(STATUS "${{DRELUOP_HAS_CUDA}} ${{DRELUOP_ARCHS}} ${{DRELUOP_GENCODE}}")
"""


def decide(folder: Path, build: str = "auto", archs: str = "", nvcc: str = "", **environment: str) -> str:
    """What CMake says where it decides on CUDA; `nvcc`: what it has found before it looks for it."""
    (folder / "script.cmake").write_text(SCRIPT.format(build=build, archs=archs, nvcc=nvcc, root=ROOT))
    done = subprocess.run(
        [find_tool("cmake"), "-P", folder / "script.cmake"],
        env={name: value for name, value in os.environ.items() if not name.startswith("CUDA")} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


NVCC = """#!/bin/sh
case "$1" in
  --dryrun) echo "#$ TOP={toolkit}" >&2 ;;
  --version) echo "Cuda compilation tools, release {release}, V{release}.1" ;;
  --list-gpu-arch) printf 'compute_75\\ncompute_80\\ncompute_90\\n' ;;
esac
"""


@pytest.fixture
def toolkit(tmp_path: Path) -> Path:
    """A folder that looks like CUDA 12.1, which knows no compute_100."""
    folder = tmp_path / "cuda"
    (folder / "bin").mkdir(parents=True)
    (folder / "lib64").mkdir()
    (folder / "lib64" / "libcudart_static.a").touch()
    make_nvcc(folder, "12.1")
    return folder


def make_nvcc(toolkit: Path, release: str) -> None:
    nvcc = toolkit / "bin" / "nvcc"
    nvcc.write_text(NVCC.format(toolkit=toolkit, release=release))
    nvcc.chmod(0o755)


def test_architectures_that_nvcc_does_not_know_are_left_out(tmp_path, toolkit):
    said = decide(tmp_path, CUDA_HOME=str(toolkit))
    assert "ON 80;90+PTX -gencode=arch=compute_80,code=[sm_80,sm_90,compute_80]" in said
    assert f"by {toolkit}/bin/nvcc" in said


@pytest.mark.parametrize(
    ("archs", "gencode"),
    [
        ("90", "-gencode=arch=compute_90,code=[sm_90]"),
        ("100;90+PTX;90", "-gencode=arch=compute_90,code=[sm_90,sm_100,compute_90]"),
    ],
)
def test_architectures_that_are_asked_for(tmp_path, toolkit, archs, gencode):
    assert f"ON {archs} {gencode}\n" in decide(tmp_path, archs=archs, CUDA_HOME=str(toolkit))


def test_bad_architectures_are_named(tmp_path, toolkit):
    said = decide(tmp_path, archs="hopper", CUDA_HOME=str(toolkit))
    assert 'dreluop: DRELUOP_CUDA_ARCHS=hopper: expected numbers such as "80;90;100+PTX".' in said
    said = decide(tmp_path, archs="75;90", CUDA_HOME=str(toolkit))
    assert "dreluop: DRELUOP_CUDA_ARCHS=75;90: the kernels need 80 or newer (bf16 conversions)." in said


def test_an_unfit_toolkit_is_an_error_only_if_cuda_was_asked_for(tmp_path, toolkit):
    make_nvcc(toolkit, "11.8")
    fault = "nvcc 11.8 is too old, the CUDA kernels need 12.1"
    said = decide(tmp_path, CUDA_HOME=str(toolkit))
    assert f"dreluop: {fault}; building without CUDA" in said
    assert "\n-- OFF" in said
    assert f" dreluop: DRELUOP_BUILD=cuda, but {fault}." in decide(tmp_path, "cuda", CUDA_HOME=str(toolkit))
    (toolkit / "lib64" / "libcudart_static.a").unlink()
    assert f"{toolkit} has no static cudart; building without CUDA" in decide(tmp_path, CUDA_HOME=str(toolkit))


def test_a_missing_nvcc_is_an_error_only_if_cuda_was_asked_for(tmp_path):
    assert "nvcc was not found; building without CUDA" in decide(tmp_path, nvcc="OFF")
    said = decide(tmp_path, "cuda", nvcc="OFF")
    assert " dreluop: DRELUOP_BUILD=cuda, but nvcc was not found: set CUDA_HOME, or use DRELUOP_BUILD=cpu." in said


def test_the_cpu_alone_asks_for_no_nvcc(tmp_path, toolkit):
    assert decide(tmp_path, "cpu", "hopper", CUDA_HOME=str(toolkit)).startswith("-- OFF")


# setup.py without the build itself.
CONFIGURE_ONLY = """
import runpy, subprocess
run = subprocess.run
subprocess.run = lambda command, **options: run(["true"] if "--build" in command else command, **options)
runpy.run_path("setup.py", run_name="__main__")
"""


def commands_of(folder: Path, output: Path) -> list[str]:
    """All commands that compile or link the Python package, with other names for the folders that differ."""
    listed = subprocess.run(
        [find_tool("ninja"), "-C", folder, "-t", "commands", *TARGETS], capture_output=True, text=True, check=True
    )
    lines = listed.stdout.replace(str(output), "OUTPUT").replace(str(folder), "FOLDER").splitlines()
    return sorted(line for line in lines if "-c " in line or "OUTPUT" in line)


@needs_nvcc
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_both_ways_of_building_compile_and_link_the_same(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DRELUOP")}
    folders = ["--build-lib", tmp_path / "by_pip" / "lib", "--build-temp", tmp_path / "by_pip" / "objects"]
    command = [sys.executable, "-c", CONFIGURE_ONLY, "build_ext", *folders]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    configure(tmp_path / "plain", CMAKE_LIBRARY_OUTPUT_DIRECTORY=str(tmp_path / "libraries"))

    by_pip = commands_of(tmp_path / "by_pip" / "objects", tmp_path / "by_pip" / "lib" / "dreluop")
    plain = commands_of(tmp_path / "plain", tmp_path / "libraries")
    assert by_pip == plain
    assert sum("OUTPUT/_" in line for line in by_pip) == len(TARGETS)

    arguments = {argument for line in by_pip for argument in shlex.split(line)}
    (archs,) = {found[1] for argument in arguments if (found := re.fullmatch(r'-DDRELUOP_CUDA_ARCHS="(.*)"', argument))}
    (gencode,) = {argument for argument in arguments if argument.startswith("-gencode")}
    numbers = re.findall(r"\d+", archs)
    assert numbers[0] == "80"
    assert archs == ";".join(numbers) + "+PTX"
    codes = ",".join([*(f"sm_{number}" for number in numbers), "compute_80"])
    assert gencode == f"-gencode=arch=compute_80,code=[{codes}]"


@pytest.mark.skipif(not machine_code.has_tools(), reason=machine_code.MISSING_TOOLS)
def test_the_library_holds_what_it_says():
    if not native.LIBRARY.exists() or not hasattr(library := ctypes.CDLL(str(native.LIBRARY)), "dreluop_cuda_archs"):
        pytest.skip(f"{native.LIBRARY} is not built, or without CUDA")
    library.dreluop_cuda_archs.restype = ctypes.c_char_p
    archs = library.dreluop_cuda_archs().decode()
    numbers = sorted({int(number) for number in re.findall(r"\d+", archs)})
    compiled = {int(found) for found in re.findall(r"sm_(\d+)", machine_code.cuobjdump(native.LIBRARY, "--list-elf"))}
    ptx = {int(found) for found in re.findall(r"sm_(\d+)", machine_code.cuobjdump(native.LIBRARY, "--list-ptx"))}
    assert compiled == set(numbers)
    assert ptx == ({numbers[0]} if "+PTX" in archs else set())
