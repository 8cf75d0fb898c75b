from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:  # At run time the fixtures import these: the GPU tests here also run where numpy is missing.
    from studies.drelu_paper.data import Digits, Split
    from studies.drelu_paper.models import DenseNetwork

EPS = 0.1
CAP = 0.01


@pytest.fixture(scope="session")
def images() -> Digits:
    from studies.drelu_paper.data import load_digits  # noqa: PLC0415

    return load_digits(images=True)


@pytest.fixture(scope="session")
def some(images: Digits) -> Split:
    """Test digits to attack."""
    from studies.drelu_paper.data import Split  # noqa: PLC0415

    return Split(images.test.x[:60], images.test.y[:60])


@pytest.fixture(scope="session")
def relu(images: Digits) -> DenseNetwork:
    from studies.drelu_paper.data import Split  # noqa: PLC0415
    from studies.drelu_paper.models import dense_relu  # noqa: PLC0415
    from studies.drelu_paper.training import TrainingConfig, train  # noqa: PLC0415

    model = dense_relu(0)
    few = Split(images.train.x[:1600], images.train.y[:1600])
    train(model, few, images.validation, TrainingConfig(epochs=3), progress=False)
    return model.eval()


@pytest.fixture(scope="session")
def masked(images: Digits) -> DenseNetwork:
    """A network whose caps are where long training takes them: its gradient is zero for nearly every digit."""
    from studies.drelu_paper.data import Split  # noqa: PLC0415
    from studies.drelu_paper.models import dense_drelu  # noqa: PLC0415
    from studies.drelu_paper.training import TrainingConfig, train  # noqa: PLC0415

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
