"""The file that a picture shows, recorded in the picture; needs no matplotlib."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

KEYWORD = "Source"  # one of PNG's own


@dataclass(frozen=True)
class Source:
    """A result file, by its name below ``benchmarks/results/``, and what was in it."""

    name: str
    sha256: str

    @classmethod
    def of(cls, path: Path) -> Source:
        return cls(f"{path.parent.name}/{path.name}", hashlib.sha256(path.read_bytes()).hexdigest())

    def __str__(self) -> str:
        return f"{self.name} sha256:{self.sha256}"


def recorded(picture: Path) -> str | None:
    """The source that a picture records; None if it is no picture of a result file."""
    from PIL import Image  # noqa: PLC0415 (comes with matplotlib)

    with Image.open(picture) as image:
        found = image.info.get(KEYWORD)
    return None if found is None else str(found)
