"""wheels.json: which rows are kept, their order, and the tables made of them."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness import files
from tools import report
from tools.wheels import document
from tools.wheels.document import Row

NAME = "dreluop-1-cp311-cp311-manylinux_2_34_x86_64.whl"


def row(python: str, torch: str, **changes: Any) -> dict[str, Any]:
    made = Row(
        python, torch, wheel=NAME, passed=3, skipped={"a": 2, "b": 1}, import_ms=61.2, import_cpu_ms=40.4, load=1.25
    )
    return asdict(made) | changes


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / NAME
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("dreluop/__init__.py", "x" * 100)
        archive.writestr(document.LIBRARY, b"y" * 3000)
    return path


def test_what_a_wheel_weighs(wheel: Path) -> None:
    found = document.describe(wheel)
    assert (found["name"], found["unpacked"], found["library_bytes"]) == (NAME, 3100, 3000)
    assert found["library_sha256"] == hashlib.sha256(b"y" * 3000).hexdigest()
    assert found["bytes"] == wheel.stat().st_size < 3000


def test_a_pure_wheel_has_no_library(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "pure.whl", "w") as archive:
        archive.writestr("dreluop/__init__.py", "")
    found = document.describe(tmp_path / "pure.whl")
    assert found["library_bytes"] is None and found["library_sha256"] is None


def test_rows_are_in_order_and_one_per_environment() -> None:
    rows: list[dict[str, Any]] = []
    for python, torch in [("3.12.1", "2.9"), ("3.11.7", "2.10.0"), ("3.11.7", "2.9.1+cpu"), ("3.9.2", "2.10.0")]:
        document.put(rows, row(python, torch))
    document.put(rows, row("3.11.7", "2.10.0", passed=4))
    assert [(one["python"], one["torch"], one["passed"]) for one in rows] == [
        ("3.9.2", "2.10.0", 3), ("3.11.7", "2.9.1+cpu", 3), ("3.11.7", "2.10.0", 4), ("3.12.1", "2.9", 3),
    ]  # fmt: skip


def test_rows_of_another_wheel_are_not_kept(wheel: Path, tmp_path: Path) -> None:
    path = tmp_path / "results" / document.FILE_NAME
    written = document.new_document([wheel])
    written["rows"] = [row("3.11.7", "2.10.0"), row("3.11.7", "2.11.0", wheel=None)]
    files.save_document(written, path)
    assert document.rows_of_the_same_wheels(path, document.new_document([wheel])) == written["rows"][:1]
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("dreluop/more.py", "")
    assert document.rows_of_the_same_wheels(path, document.new_document([wheel])) == []


def test_tables(wheel: Path, tmp_path: Path) -> None:
    written = document.new_document([wheel])
    failed = row("3.12.1", "2.15.0", failure="2 tests failed\nmore", failed=["a", "b"], import_ms=None)
    written["rows"] = [row("3.11.7", "2.10.0"), failed]
    files.save_document(written, tmp_path / "results" / "machine" / document.FILE_NAME)
    assert document.environment_table(written).rows == [
        ("3.11.7", "2.10.0", "cp311", "passed", "3", "0", "3", "0", "40", "61 (1.2)"),
        ("3.12.1", "2.15.0", "cp311", "**failed**: 2 tests failed", "3", "2", "3", "0", "-", "-"),
    ]
    text = report.wheels(tmp_path / "results")
    assert "| 3.11.7 | 2.10.0 | cp311 | passed |" in text and f"| {NAME} | 0.00 | 0.00 | 0.00 |" in text
    assert report.wheels(tmp_path) == report.NOTHING
