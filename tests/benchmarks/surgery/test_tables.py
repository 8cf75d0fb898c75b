"""The table of the sweeps: sums per library, and what is missed in silence stands out."""

from __future__ import annotations

from typing import Any

from benchmarks.surgery import tables

SWEEP = {"name": "resnet18", "calls_train": 17, "calls_eval": 16, "found": 17, "replaced": 17, "fused": 8}
ZOO = {"calls": 5, "sites": 6, "replaced": 4, "fused": 1, "remaining": 1, "remaining_independent": 1, "error": ""}


def row(**changes: Any) -> dict[str, Any]:
    return {"name": "timm/a", "equal": True, "gradients": True, "seconds": 0.5, **ZOO, **changes}


def document(*rows: dict[str, Any]) -> dict[str, Any]:
    return {
        "rows": rows,
        "date": "2026-11-30T20:00:00",
        "commit": {"hash": "0123456789"},
        "versions": {"torch": "2.11.0"},
    }


def test_a_row_per_library_with_sums() -> None:
    sweep = document({**SWEEP, "remaining": 0, "equal": True, "seconds": 0.1})
    zoo = document(row(), row(name="timm/b", remaining_independent=3, equal=False, seconds=1.5), row(calls=0))
    found = tables.table([sweep, zoo])
    cells = [dict(zip(found.header, one, strict=True)) for one in found.rows]
    assert [one["library"] for one in cells] == ["torchvision, classifiers", "timm"]
    assert (cells[0]["calls"], cells[0]["sites"], cells[0]["equal gradients"]) == ("17", "17", "-")
    assert (cells[1]["networks"], cells[1]["with ReLU"], cells[1]["calls"]) == ("3", "2", "10")
    assert (cells[1]["remain"], cells[1]["in silence"], cells[1]["errors"]) == ("5", "2", "0")
    assert (cells[1]["equal outputs"], cells[1]["seconds"]) == ("1 of 2", "0.50 / 1.50")


def test_an_error_counts_and_the_headline_says_when() -> None:
    failed = document(row(calls=None, seconds=None, error="TypeError: no", equal=None, gradients=None))
    assert dict(zip(tables.table([failed]).header, tables.table([failed]).rows[0], strict=True))["errors"] == "1"
    assert tables.headline([failed]) == "2026-11-30, 0123456: torch 2.11.0"
