"""What setup.py needs before it can call CMake, and what it says where that is missing."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from importlib.util import find_spec

import setuptools

CHOICES = ("auto", "cuda", "cpu", "none")
SETUPTOOLS, CMAKE, NINJA = (77, 0), (3, 24), (1, 10)
CXX = ("c++", "g++", "clang++")


def stop(sentence: str) -> None:
    raise SystemExit(f"\ndreluop: {sentence}\n")


def is_compiled() -> bool:
    """Whether this build has a compiled part at all."""
    choice = os.environ.get("DRELUOP_BUILD", "auto")
    if choice not in CHOICES:
        stop(f"DRELUOP_BUILD={choice} is not one of {', '.join(CHOICES)}.")
    if choice == "auto" and sys.platform != "linux":
        print(
            f"dreluop: no compiled part for {sys.platform}, only for Linux; pure Python is installed", file=sys.stderr
        )
        return False
    return choice != "none"


def checked_tools() -> tuple[str, str]:
    """CMake and Ninja; or the program ends, with one sentence that says what to install."""
    if sys.platform != "linux":
        stop(f"the compiled part builds on Linux only, not on {sys.platform}; use DRELUOP_BUILD=none.")
    if _version(setuptools.__version__) < SETUPTOOLS:
        stop(
            f"setuptools {setuptools.__version__} is too old: run pip install 'setuptools>={SETUPTOOLS[0]},<82' first "
            "(a build without isolation uses the one you have)."
        )
    compilers = shlex.split(os.environ.get("CXX", ""))[:1] or CXX
    if not any(shutil.which(name) for name in compilers):
        stop(
            "no C++ compiler was found (set CXX or install g++); DRELUOP_BUILD=none installs without the compiled "
            "part, served by the slower reference."
        )
    if find_spec("torch") is None:
        stop(
            "torch is not visible to this build (pip isolates builds from installed packages). Install torch first, "
            "then run: pip install --no-build-isolation .   (or DRELUOP_BUILD=none pip install . for a pure Python "
            "install)."
        )
    if find_spec("pybind11") is None:
        stop("pybind11 is missing: run pip install 'pybind11>=3.0' first (a build without isolation uses yours).")
    return _tool("cmake", CMAKE), _tool("ninja", NINJA)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text)[:2])


def _tool(name: str, oldest: tuple[int, int]) -> str:
    """The program that pip installed beside this Python, or the one on PATH."""
    for folder in (sysconfig.get_path("scripts"), None):
        program = shutil.which(name, path=folder)
        if program:
            found = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
            if _version(found) >= oldest:
                return program
    needed = ".".join(map(str, oldest))
    place = f"beside {sys.executable} or on PATH"
    stop(f"{name} {needed} or newer was not found, {place}: run pip install cmake ninja first.")
