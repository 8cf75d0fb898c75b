from __future__ import annotations

import pytest

from tests.support.backends import fast_path_or_skip


@pytest.fixture
def compiled() -> None:
    fast_path_or_skip()
