"""What a shared library asks of others, as `nm` of binutils tells, and what it says of where it was built."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

# Of the C and C++ runtime and of the loader. torch too exports some of std, which then has no version.
OF_THE_SYSTEM = re.compile(r"@(GLIBC|GLIBCXX|CXXABI|GCC)_|^_ZN?K?R?S[to]|^_ZT[ISTV]N?S[to]")

# Absolute ones, of sources and headers.
PATHS = re.compile(rb"(?<![\w.\-/])/[\w.\-/]+/(?:csrc|include|site-packages)(?:/[\w.\-]+)*")


def needed(library: Path) -> list[str]:
    """The symbols, but for the system's, without which a library cannot be loaded."""
    names = re.findall(r"^ +U (\S+)", _nm("--undefined-only", library), re.MULTILINE)
    return [name for name in names if not OF_THE_SYSTEM.search(name)]


def exported(libraries: Iterable[Path]) -> set[str]:
    """The symbols that libraries define."""
    lines = [line for library in libraries for line in _nm("--defined-only", library).splitlines()]
    return {line.split()[-1].split("@")[0] for line in lines}


def build_paths(library: Path) -> list[str]:
    """The paths of sources and headers on the machine that built a library, as it holds them."""
    return sorted({path.decode() for path in PATHS.findall(library.read_bytes())})


def _nm(which: str, library: Path) -> str:
    return subprocess.run(["nm", "-D", which, library], capture_output=True, text=True, check=True).stdout
