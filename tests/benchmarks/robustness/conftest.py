from __future__ import annotations

import pytest

from studies.drelu_paper.data import Digits, Split, load_digits


@pytest.fixture(scope="session")
def few() -> Digits:
    """320 training, 100 validation and 200 test digits."""
    return Digits(*(Split(s.x[:n], s.y[:n]) for s, n in zip(load_digits(), (320, 100, 200), strict=True)))
