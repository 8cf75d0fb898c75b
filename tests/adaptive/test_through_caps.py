"""Attacks that know of the caps find what the exact gradient does not."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("pyautoattack")

from dreluop.adaptive import measure_std
from dreluop.adaptive.attacks import accuracy, zero_gradient_share
from dreluop.adaptive.attacks.auto import apgd_ce
from dreluop.adaptive.attacks.through_caps import (
    transferred,
    uncapped,
    worst_of_soft,
    worst_of_straight_through,
)
from studies.drelu_paper.data import Digits, Split
from studies.drelu_paper.models import DenseNetwork

EPS, STEPS = 0.1, 20


@pytest.fixture(scope="module")
def exact(masked: DenseNetwork, some: Split) -> float:
    assert zero_gradient_share(masked, *some) > 0.6
    return accuracy(masked, apgd_ce(masked, *some, EPS, STEPS), some.y)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["straight_through", "soft", "soft, std given", "uncapped", "transferred"])
def test_far_stronger_than_the_exact_gradient(
    name: str, exact: float, masked: DenseNetwork, relu: DenseNetwork, some: Split, images: Digits
):
    attacks = {
        "straight_through": lambda: worst_of_straight_through(masked, *some, EPS, STEPS),
        "soft": lambda: worst_of_soft(masked, *some, EPS, STEPS),
        "soft, std given": lambda: worst_of_soft(
            masked, *some, EPS, STEPS, std=measure_std(masked, images.validation.x)
        ),
        "uncapped": lambda: uncapped(masked, *some, EPS, STEPS),
        "transferred": lambda: transferred(relu, masked, *some, EPS, STEPS),
    }
    adversarial = attacks[name]()
    assert (adversarial - some.x).abs().max() <= EPS + 1e-6
    assert 0 <= adversarial.min() <= adversarial.max() <= 1
    assert accuracy(masked, adversarial, some.y) < exact - 0.2
    # The exact gradient is as empty as before.
    assert zero_gradient_share(masked, *some) > 0.6


def test_an_input_that_one_attack_fools_is_not_attacked_again(masked: DenseNetwork, some: Split):
    alone = accuracy(masked, worst_of_straight_through(masked, *some, EPS, STEPS), some.y)
    before = worst_of_straight_through(masked, *some, EPS, STEPS)
    assert accuracy(masked, before, some.y) == alone


def test_the_model_s_caps_and_weights_stay(masked: DenseNetwork, some: Split):
    before = {name: value.clone() for name, value in masked.state_dict().items()}
    uncapped(masked, *some, EPS, 2)
    worst_of_soft(masked, *some, EPS, 2)
    assert all(torch.equal(value, before[name]) for name, value in masked.state_dict().items())
