from __future__ import annotations

import pytest
import torch

from studies.drelu_paper.data import Digits, Split, load_digits
from studies.drelu_paper.models import DenseNetwork, dense_drelu, dense_relu
from studies.drelu_paper.training import TrainingConfig, train

EPS = 0.1
CAP = 0.01


@pytest.fixture(scope="session")
def images() -> Digits:
    return load_digits(images=True)


@pytest.fixture(scope="session")
def some(images: Digits) -> Split:
    """Test digits to attack."""
    return Split(images.test.x[:60], images.test.y[:60])


@pytest.fixture(scope="session")
def relu(images: Digits) -> DenseNetwork:
    model = dense_relu(0)
    few = Split(images.train.x[:1600], images.train.y[:1600])
    train(model, few, images.validation, TrainingConfig(epochs=3), progress=False)
    return model.eval()


@pytest.fixture(scope="session")
def masked(images: Digits) -> DenseNetwork:
    """A network whose caps are where long training takes them: its gradient is zero for nearly every digit."""
    few = Split(images.train.x[:1600], images.train.y[:1600])
    model = dense_drelu(0)
    train(model, few, images.validation, TrainingConfig(epochs=2, balancer=0.0), progress=False)
    with torch.no_grad():
        model.activation.cap.fill_(CAP)
        model.output.weight.div_(CAP)
    for part in (model.body, model.head, model.activation):
        part.requires_grad_(False)
    train(model, few, images.validation, TrainingConfig(epochs=2, balancer=0.0, lr=0.1), progress=False)
    return model.eval()
