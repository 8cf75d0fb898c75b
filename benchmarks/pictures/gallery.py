"""The pictures in `docs/pictures/`, of result files and of studies: which there are to be, and what they show."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.pictures.source import Source, recorded
from studies.drelu_paper.report import pages as studies
from studies.drelu_paper.statistics.document import FILE_NAME as STATISTICS_FILE_NAME

FOLDER = Path(__file__).parents[2] / "docs" / "pictures"
RUN = "run python -m benchmarks.report"


def _roofline(document: dict[str, Any], path: Path, source: Source) -> None:
    from benchmarks.pictures import roofline  # noqa: PLC0415 (matplotlib is not needed to check)

    roofline.draw(document, path, source)


def _speed_up(document: dict[str, Any], path: Path, source: Source) -> None:
    from benchmarks.pictures import scaling  # noqa: PLC0415

    scaling.draw_speed_up(document, path, source)


def _scaling(document: dict[str, Any], path: Path, source: Source) -> None:
    from benchmarks.pictures import scaling  # noqa: PLC0415

    scaling.draw(document, path, source)


def _depth(document: dict[str, Any], path: Path, source: Source) -> None:
    from benchmarks.pictures import depth  # noqa: PLC0415

    depth.draw(document, path, source)


@dataclass(frozen=True)
class Kind:
    """A kind of picture, one per result file of this name."""

    name: str
    file: str
    title: str
    draw: Callable[[dict[str, Any], Path, Source], None]


SPEED = (
    Kind("roofline", "kernels.json", "Share of the floor's bandwidth", _roofline),
    Kind("speed-up", "scaling.json", "Speed-up and share of the floor over the size of x", _speed_up),
    Kind("scaling", "scaling.json", "Time over the size of x and over the number of caps", _scaling),
    Kind("memory-over-depth", "memory.json", "Memory kept for backward over the number of layers", _depth),
)


@dataclass(frozen=True)
class Picture:
    """One that there is to be."""

    kind: Kind
    result: Path

    @property
    def name(self) -> str:
        return f"{self.result.parent.name}-{self.kind.name}.png"

    @property
    def title(self) -> str:
        return self.kind.title

    @property
    def source(self) -> Source:
        return Source.of(self.result)

    def draw(self, path: Path) -> None:
        self.kind.draw(json.loads(self.result.read_text()), path, self.source)


def of_files(results: Path) -> list[Picture]:
    """The pictures of the result files below a folder."""
    return [Picture(kind, path) for kind in SPEED for path in sorted(results.glob(f"*/{kind.file}"))]


def of_studies(results: Path) -> dict[str, Callable[[Path], None]]:
    """The pictures of the studies and of their statistics, by name, and what draws each; they record no source."""
    found = studies.pictures(results)
    for path in sorted(results.glob(f"*/{STATISTICS_FILE_NAME}")):
        found[f"{path.parent.name}-critical-difference.png"] = partial(_draw_statistics, path)
    return found


def _draw_statistics(document: Path, path: Path) -> None:
    from studies.drelu_paper.statistics import picture  # noqa: PLC0415

    picture.draw(json.loads(document.read_text()), path)


def problems(results: Path, folder: Path = FOLDER) -> list[str]:
    """What of the pictures is not what the result files give; empty if all is right."""
    found = []
    pictures = {picture.name: picture for picture in of_files(results)}
    others = of_studies(results)
    found += [f"{folder / name}: missing; {RUN}" for name in others if not (folder / name).exists()]
    for name, picture in pictures.items():
        path = folder / name
        if not path.exists():
            found.append(f"{path}: missing; {RUN}")
        elif recorded(path) != str(picture.source):
            found.append(f"{path}: shows {recorded(path)}, not {picture.source}; {RUN}")
    for path in sorted(folder.glob("*.png")):
        if path.name not in (*pictures, *others) and recorded(path) is not None:
            found.append(f"{path}: shows {recorded(path)}, which is no longer drawn: remove it")
    return found


def update(results: Path, folder: Path = FOLDER, *, again: bool = False) -> list[Path]:
    """Draw those that are missing or out of date, or all; returns the files written."""
    written = []
    for picture in of_files(results):
        path = folder / picture.name
        if again or not path.exists() or recorded(path) != str(picture.source):
            folder.mkdir(parents=True, exist_ok=True)
            picture.draw(path)
            written.append(path)
    for name, draw in of_studies(results).items():
        if again or not (folder / name).exists():
            folder.mkdir(parents=True, exist_ok=True)
            draw(folder / name)
            written.append(folder / name)
    return written


def markdown(results: Path) -> str:
    """The pictures of speed and memory for a document in ``docs/``, each with its file."""
    blocks = [
        f"![{picture.title}](pictures/{picture.name})\n\n{picture.title}: `benchmarks/results/{picture.source.name}`."
        for picture in of_files(results)
    ]
    return "\n\n".join(blocks) or "Nothing has been measured yet."
