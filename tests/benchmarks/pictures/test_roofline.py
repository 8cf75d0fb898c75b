from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")

from benchmarks.gpu.document import Document
from benchmarks.gpu.suite import LARGE
from benchmarks.harness import implementations as c
from benchmarks.kernels.suite import BACKWARD, FORWARD
from benchmarks.pictures import roofline
from benchmarks.pictures.source import Source, recorded
from tests.benchmarks.gpu.conftest import document, gpu, machine, rows  # noqa: F401 (fixtures)

SOURCE = Source("some/kernels.json", "0" * 64)


@pytest.mark.parametrize("some", [True, False])
def test_a_gpu(tmp_path: Path, document: Document, some: bool) -> None:  # noqa: F811
    large: list[Any] = [{**row, "x_bytes": LARGE, "bias_and_residual": []} for row in document["rows"] if some]
    path = tmp_path / "some.png"
    roofline.draw({**document, "rows": large}, path, SOURCE)
    assert recorded(path) == str(SOURCE)


def test_shares_of_a_processor_are_against_a_clone() -> None:
    row = {
        **{"x_bytes": LARGE, "threads": 2, "floor": c.CLONE, "floor_ms": 10.0, "case": "a", "dtype": "float32"},
        **{"implementation": c.OURS.name, "pass": BACKWARD, "ms": 20.0, "min_bytes": 3 * LARGE},
    }
    alone = {**row, "threads": 1}
    inplace = {**row, "floor": c.COPY}
    small = {**row, "x_bytes": LARGE - 1}
    forward = {**row, "pass": FORWARD, "min_bytes": 2 * LARGE}
    found = list(roofline._of_processor({"threads": 2, "rows": [row, alone, inplace, small, forward]}))
    assert {share.pass_: share.share for share in found} == pytest.approx({BACKWARD: 0.75, FORWARD: 0.5})
    assert len(found) == 2
