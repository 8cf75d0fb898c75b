"""CONTRIBUTING leads to files that exist, and its map has every folder."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
FOLDERS = ("dreluop", "csrc", "benchmarks", "studies", "tools")
# In backticks, in links, and in the map. A path may be a pattern (`csrc/cpu/*.cpp`).
QUOTED = re.findall(r"`([\w./*-]+(?:/|\.(?:py|pyi|md|toml|cpp|cuh?|h|inc)|CMakeLists\.txt))`", TEXT)
LINKED = re.findall(r"\]\(([\w./-]+)\)", TEXT)
MAP = re.findall(rf"(?:^|\s{{4,}})((?:{'|'.join(FOLDERS)}|examples|tests)/[\w/]*)(?=\s)", TEXT, re.MULTILINE)


@pytest.mark.parametrize("path", sorted({*QUOTED, *LINKED, *MAP}))
def test_path_exists(path: str) -> None:
    assert any(ROOT.glob(path.rstrip("/"))), path


def test_enough_paths_are_found() -> None:
    assert "dreluop/ops/schemas.py" in QUOTED and "csrc/cuda/*.cu" in QUOTED and "tests/ops/" in QUOTED
    assert "docs/glossary.md" in LINKED
    assert "dreluop/ops/" in MAP and "tools/wheels/" in MAP


def test_the_map_has_every_folder() -> None:
    found = [path for top in FOLDERS for path in (ROOT / top).iterdir() if any(path.glob("*.*"))]
    names = [f"{path.relative_to(ROOT)}/" for path in found if path.name != "__pycache__"]
    assert len(names) >= 20
    assert not [name for name in names if not any(entry.startswith(name) for entry in MAP)]
