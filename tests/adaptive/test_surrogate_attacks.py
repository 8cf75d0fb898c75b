"""Surrogate gradients as attacks on real digits: a head of steps hides its gradient from PGD, and they find it again.

The study behind the numbers is section 4 of the design notes: nets whose caps have fallen to 0.01 stand at 80 to 90 %
against exact gradients, and below 20 % against these.
"""

from __future__ import annotations

import pytest
from torch import Tensor, nn

from dreluop.adaptive import measure_std, remove_caps, surrogate_backward
from dreluop.adaptive.attacks import accuracy, pgd, zero_gradient_share
from studies.drelu_paper.data import Digits, Split
from studies.drelu_paper.models import DenseNetwork

EPS = 0.1


class ScaleFree(nn.Module):
    """Logits of size one: without caps they are hundreds of times larger, and their softmax has no gradient left."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits = self.model(x)
        return logits / logits.abs().amax(1, keepdim=True)


@pytest.fixture(scope="module")
def attacked(masked: DenseNetwork, images: Digits) -> tuple[DenseNetwork, Split, Split]:
    """A network whose caps are where long training takes them."""
    return masked, Split(images.test.x[:200], images.test.y[:200]), images.validation


@pytest.fixture(scope="module")
def exact(attacked: tuple[DenseNetwork, Split, Split]) -> float:
    """Accuracy under PGD with the exact gradient, which finds next to nothing."""
    model, test, _ = attacked
    clean, under_attack = accuracy(model, *test), accuracy(model, pgd(model, *test, EPS), test.y)
    assert clean > 0.6
    assert under_attack > clean - 0.15
    assert zero_gradient_share(model, *test) > 0.6
    return under_attack


@pytest.mark.parametrize("form", ["straight_through", "soft", "soft, std given"])
def test_pgd_through_a_surrogate_is_far_stronger(
    attacked: tuple[DenseNetwork, Split, Split], exact: float, form: str
) -> None:
    model, test, validation = attacked
    mode = form.split(",", maxsplit=1)[0]
    with surrogate_backward(mode, std=measure_std(model, validation.x) if "given" in form else None):
        assert zero_gradient_share(model, *test) < 0.05
        adversarial = pgd(model, *test, EPS)
    assert accuracy(model, adversarial, test.y) < exact - 0.3
    # Nothing is left behind: the exact gradient is as empty as before.
    assert zero_gradient_share(model, *test) > 0.6


def test_one_sample_at_a_time_needs_the_std_of_a_batch(attacked: tuple[DenseNetwork, Split, Split]) -> None:
    model, test, validation = attacked
    one = Split(test.x[:1], test.y[:1])
    with surrogate_backward("soft"), pytest.raises(ValueError, match="measure_std"):
        pgd(model, *one, EPS)
    with surrogate_backward("soft", std=measure_std(model, validation.x)):
        assert zero_gradient_share(model, *one) == 0


def test_the_model_without_caps_is_a_surrogate_too(attacked: tuple[DenseNetwork, Split, Split], exact: float) -> None:
    model, test, _ = attacked
    view = ScaleFree(remove_caps(model))
    assert zero_gradient_share(view, *test) < 0.05
    assert accuracy(model, pgd(view, *test, EPS), test.y) < exact - 0.3
