"""The result file: which wheels were tried, where, and with what outcome."""

from __future__ import annotations

import hashlib
import re
import zipfile
from pathlib import Path
from typing import TypedDict, cast

import torch

from benchmarks.harness import files, machine

FILE_NAME = "wheels.json"
LIBRARY = "dreluop/_ops.abi3.so"


class Wheel(TypedDict):
    """``bytes`` of the file, ``unpacked`` of what is in it; size and SHA-256 of the operator library, if it has one."""

    name: str
    bytes: int
    unpacked: int
    library_bytes: int | None
    library_sha256: str | None


class Row(TypedDict):
    """One environment.

    ``failure`` says what went wrong, None if nothing did; ``compilers`` are those that the environment can find;
    ``skipped`` counts by reason; ``import_ms`` and ``import_cpu_ms`` are medians of ``import dreluop`` after
    ``import torch`` in ``import_processes`` new processes, ``load`` the machine's load meanwhile; ``missing_symbols``
    are those that the operator library needs and neither torch nor the system has.
    """

    python: str
    torch: str
    wheel: str | None
    date: str
    failure: str | None
    compilers: list[str]
    missing_symbols: list[str]
    self_check: str | None
    tests: list[str]
    passed: int
    failed: list[str]
    skipped: dict[str, int]
    test_seconds: float | None
    import_ms: float | None
    import_cpu_ms: float | None
    import_processes: int
    load: float | None


class Document(TypedDict):
    """``commit`` is of the files that ran the tests."""

    schema: int
    date: str
    device: machine.Device
    commit: machine.Commit | None
    wheels: list[Wheel]
    rows: list[Row]


def new_document(wheels: list[Path]) -> Document:
    """A document without rows, of this machine and moment."""
    return {
        "schema": files.SCHEMA,
        "date": machine.now(),
        "device": machine.describe_device(torch.device("cpu")),
        "commit": machine.commit(),
        "wheels": [describe(path) for path in wheels],
        "rows": [],
    }


def describe(path: Path) -> Wheel:
    """What a wheel weighs."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        library = archive.read(LIBRARY) if LIBRARY in archive.namelist() else None
    return {
        "name": path.name,
        "bytes": path.stat().st_size,
        "unpacked": sum(entry.file_size for entry in entries),
        "library_bytes": None if library is None else len(library),
        "library_sha256": None if library is None else hashlib.sha256(library).hexdigest(),
    }


def rows_of_the_same_wheels(path: Path, document: Document) -> list[Row]:
    """The rows that a file has of wheels with the same content: others say nothing about these.

    Raises:
        ValueError: the file is no JSON, or not of this schema.
    """
    before = cast(Document, files.load_document(path))
    same = {wheel["name"] for wheel in document["wheels"] if wheel in before["wheels"]}
    return [row for row in before["rows"] if row["wheel"] in same]


def put(rows: list[Row], row: Row) -> None:
    """Add a row in its order, in place of one of the same versions."""
    rows[:] = [other for other in rows if _versions(other) != _versions(row)] + [row]
    rows.sort(key=_versions)


def _versions(row: Row) -> tuple[list[int], list[int], str]:
    """For sorting: 2.9 comes before 2.10."""
    python, torch = ([int(part) for part in re.findall(r"\d+", row[key].split("+")[0])] for key in ("python", "torch"))
    return python, torch, row["torch"]
