"""What a shared library needs from others, from binutils' `nm`, and the paths it holds of where it was built."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

# Of the C and C++ runtime and the loader. torch exports some of std too, without a version.
SYSTEM = re.compile(r"@(GLIBC|GLIBCXX|CXXABI|GCC)_|^_ZN?K?R?S[to]|^_ZT[ISTV]N?S[to]")
# Absolute paths of sources and headers.
PATHS = re.compile(rb"(?<![\w.\-/])/[\w.\-/]+/(?:csrc|include|site-packages)(?:/[\w.\-]+)*")


def needed(library: Path) -> list[str]:
    """The symbols, except the system's, without which a library cannot be loaded."""
    names = re.findall(r"^ +U (\S+)", _nm("--undefined-only", library), re.MULTILINE)
    return [name for name in names if not SYSTEM.search(name)]


def exported(libraries: Iterable[Path]) -> set[str]:
    """The symbols that libraries define."""
    lines = [line for library in libraries for line in _nm("--defined-only", library).splitlines()]
    return {line.split()[-1].split("@")[0] for line in lines}


def build_paths(library: Path) -> list[str]:
    """The source and header paths that a library holds of the machine that built it."""
    return sorted({path.decode() for path in PATHS.findall(library.read_bytes())})


def _nm(which: str, library: Path) -> str:
    return subprocess.run(["nm", "-D", which, library], capture_output=True, text=True, check=True).stdout
