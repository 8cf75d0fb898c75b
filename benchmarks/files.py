"""Files that a reader, or a crash, finds whole: as they were or as they are to be."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A place to write what is to be ``path``; it takes that name when the block ends without an error.

    The folder is made. Several processes may do this at once for one path: the last one stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    yield unfinished
    unfinished.replace(path)
