"""One pool of processes per size and session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.distributed.processes import Processes


@pytest.fixture(scope="session")
def pools() -> Iterator[dict[int, Processes]]:
    started: dict[int, Processes] = {}
    yield started
    for pool in started.values():
        pool.close()


@pytest.fixture
def processes(request: pytest.FixtureRequest, pools: dict[int, Processes]) -> Processes:
    size: int = request.param
    if size not in pools or pools[size].closed:
        pools[size] = Processes(size)
    return pools[size]
