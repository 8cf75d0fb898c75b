from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from studies.drelu_paper.data import Digits, Split, load_digits
from studies.drelu_paper.models import DenseNetwork, dense_relu
from studies.drelu_paper.training import TrainingConfig, train

if TYPE_CHECKING:
    from studies.drelu_paper.configuration import Study


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


TINY = """
title: Tiny
data: {name: digits, train_limit: 96}
seeds: [0, 1]
models: [dense]
methods: [natural, {method: at, training: {epochs: 1}}, {method: drelu, balancer: [1, 100]}]
training: {epochs: 2, attack_steps: 1}
attacks:
  {eps: 0.1, samples: 10, batch_size: 6, pgd_steps: 1, apgd_steps: 2, square_queries: 3, cw_samples: 2, cw_steps: 2,
   cw_searches: 1, bounds: [0.05, 0.2]}
pictures: [balancer, bounds, initial_cap, trajectory]
"""


@pytest.fixture(scope="session")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("configuration") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="session")
def tiny(tiny_file: Path) -> Study:
    from studies.drelu_paper import configuration  # noqa: PLC0415 (needs more than the other fixtures)

    return configuration.read(tiny_file)
