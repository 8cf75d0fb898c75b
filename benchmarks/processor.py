"""What the system tells of the processor's caches and of free memory."""

from __future__ import annotations

import os
import re
from pathlib import Path

USUAL_CACHE = 32 * 2**20  # bytes, where the system does not tell
MEMORY = Path("/proc/meminfo")
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


def available_memory(file: Path = MEMORY) -> int:
    """Bytes that can be had without swapping; where the system does not tell, of all memory."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", file.read_text(), re.MULTILINE) if file.exists() else None
    return int(found[1]) * 2**10 if found else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def last_level_cache(folder: Path = CACHES) -> int:
    """Bytes of the processor's largest cache."""
    found = []
    for path in folder.glob("index*/size"):
        size = re.fullmatch(r"(\d+)([KMG]?)", path.read_text().strip())
        if size:
            found.append(int(size[1]) * UNITS[size[2]])
    return max(found, default=USUAL_CACHE)
