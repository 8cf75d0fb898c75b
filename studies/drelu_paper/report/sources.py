"""The records that a picture of a study shows, as its source."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from benchmarks.pictures.source import Source
from studies.drelu_paper.recipe import Evaluated


def source_of(name: str, runs: Sequence[Evaluated], folder: Path) -> Source:
    """One source for all records of a study: the folder, the study, and a hash over their files in order."""
    digest = hashlib.sha256()
    for run in runs:
        path = folder / f"{run.name}.json"
        if path.exists():
            digest.update(path.read_bytes())
    return Source(f"{folder.name}, study {name}", digest.hexdigest())
