from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from benchmarks.robustness.data import Digits, Split, load_digits
from benchmarks.robustness.models import DenseNetwork, dense_relu
from benchmarks.robustness.training import TrainingConfig, train


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    # Small steps on two busy threads wait for each other.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def digits() -> Digits:
    return load_digits()


@pytest.fixture(scope="session")
def few(digits: Digits) -> Digits:
    """320 training, 100 validation and 200 test digits."""
    return Digits(*(Split(s.x[:n], s.y[:n]) for s, n in zip(digits, (320, 100, 200), strict=True)))


@pytest.fixture
def trained(digits: Digits) -> DenseNetwork:
    """A ReLU network that knows most digits."""
    model = dense_relu(0)
    train(model, Split(digits.train.x[:1600], digits.train.y[:1600]), digits.validation, TrainingConfig(epochs=2))
    return model
