"""The code of docs/distributed.md runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.processes import on_processes

GUIDE = Path(__file__).parents[2] / "docs" / "distributed.md"
BLOCKS = [part.split("```")[0] for part in GUIDE.read_text().split("```python\n")[1:]]


@on_processes(2)
@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_the_guide_runs(number: int) -> None:
    names: dict[str, object] = {}
    exec(BLOCKS[number], names)
    assert all(parameter.grad is not None for parameter in names["model"].parameters())
