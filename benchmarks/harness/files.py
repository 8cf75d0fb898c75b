"""Files that a reader, or a crash, finds whole: as they were or as they are to be; and those that are not whole."""

from __future__ import annotations

import argparse
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SCHEMA = 1  # of JSON documents


class DamagedFileError(ValueError):
    """A file that is not what its writer wrote, such as one that a full disk cut off.

    Attributes:
        path: of the file.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def set_aside(path: Path) -> Path | None:
    """Give the file another name, so that a whole one can be written in its place.

    Returns:
        The new path; None where another process was faster.
    """
    names = (path.with_name(f"{path.name}.damaged-{number}") for number in itertools.count(1))
    aside = next(name for name in names if not name.exists())
    try:
        return path.rename(aside)
    except FileNotFoundError:
        return None


def folder_argument(text: str) -> Path:
    """The type of an argument that names a folder, which need not exist yet.

    Raises:
        argparse.ArgumentTypeError: the path, or one above it, is a file.
    """
    path = Path(text)
    existing = next((one for one in (path, *path.absolute().parents) if one.exists()), path)
    if not existing.is_dir():
        raise argparse.ArgumentTypeError(f"got {text!r}, where {existing} is a file; expected a folder")
    return path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A place to write what is to be ``path``; it takes that name when the block ends without an error.

    The folder is made. Several processes may do this at once for one path: the last one stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    yield unfinished
    unfinished.replace(path)


def load_document(path: Path) -> dict[str, Any]:
    """Read a JSON document, as tools and studies write it.

    Raises:
        DamagedFileError: the file is no JSON, or no document at all.
        ValueError: it is of another schema.
    """
    try:
        document: Any = json.loads(path.read_bytes())
    except (ValueError, RecursionError, IsADirectoryError) as error:
        raise DamagedFileError(path, f"no valid JSON: {error}") from error
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        reason = f"got schema {schema}; expected {SCHEMA}: measure again with this version"
        raise DamagedFileError(path, reason) if schema is None else ValueError(f"{path}: {reason}")
    return dict(document)


def save_document(document: Mapping[str, Any], path: Path) -> None:
    """Write a JSON document so that a reader, or a crash, finds either the old file or the new one."""
    with replacing(path) as unfinished:
        unfinished.write_text(json.dumps(document, indent=1) + "\n")
