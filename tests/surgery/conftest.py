from __future__ import annotations

import pytest


@pytest.fixture(params=[True, False], ids=["example", "no_example"])
def run(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)
