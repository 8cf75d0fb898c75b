"""The adversarial-robustness-toolbox finds what our attacks find, to 2 points."""

from __future__ import annotations

import random
import warnings

import numpy as np
import pytest
import torch

pytest.importorskip("pyautoattack")
pytest.importorskip("foolbox")
pytest.importorskip("art")

from dreluop.adaptive.attacks import accuracy, fgsm, pgd
from dreluop.adaptive.attacks.auto import apgd_ce, apgd_dlr, square
from dreluop.adaptive.attacks.carlini import cw_l2
from studies.drelu_paper.data import Digits, Split
from studies.drelu_paper.models import DenseNetwork

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from art.attacks import evasion
    from art.estimators.classification import PyTorchClassifier

pytestmark = pytest.mark.slow

# Between the easy and the hopeless, so that a weaker attack shows.
EPS = 0.05
POINTS = 0.02


@pytest.fixture(autouse=True)
def _art_seed() -> None:
    # ART draws from the global generators; the accuracy that its Square leaves spreads over 2 points between seeds.
    random.seed(0)
    np.random.seed(0)


@pytest.fixture(scope="module")
def digits_to_attack(images: Digits) -> Split:
    return Split(images.test.x[:200], images.test.y[:200])


@pytest.fixture
def classifier(relu: DenseNetwork) -> PyTorchClassifier:
    return PyTorchClassifier(
        relu, torch.nn.CrossEntropyLoss(), input_shape=(1, 28, 28), nb_classes=10, clip_values=(0, 1), device_type="cpu"
    )


def by_art(classifier: PyTorchClassifier, attack: object, data: Split) -> float:
    adversarial = torch.from_numpy(attack.generate(data.x.numpy(), data.y.numpy()))
    classifier.model.requires_grad_(True)
    return accuracy(classifier.model, adversarial, data.y)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (fgsm, lambda c: evasion.FastGradientMethod(c, eps=EPS, batch_size=200)),
        (
            pgd,
            lambda c: evasion.ProjectedGradientDescentPyTorch(
                c, eps=EPS, eps_step=EPS / 10, max_iter=40, num_random_init=1, batch_size=200, verbose=False
            ),
        ),
        (
            apgd_ce,
            lambda c: evasion.AutoProjectedGradientDescent(
                c, eps=EPS, eps_step=2 * EPS, max_iter=100, nb_random_init=1, batch_size=200,
                loss_type="cross_entropy", verbose=False,
            ),
        ),
        (
            apgd_dlr,
            lambda c: evasion.AutoProjectedGradientDescent(
                c, eps=EPS, eps_step=2 * EPS, max_iter=100, nb_random_init=1, batch_size=200,
                loss_type="difference_logits_ratio", verbose=False,
            ),
        ),
    ],
    ids=["fgsm", "pgd", "apgd_ce", "apgd_dlr"],
)  # fmt: skip
def test_attacks_along_the_gradient(ours, theirs, classifier, relu: DenseNetwork, digits_to_attack: Split):
    found = accuracy(relu, ours(relu, *digits_to_attack, EPS), digits_to_attack.y)
    assert 0.1 < found < accuracy(relu, *digits_to_attack) - 0.1
    assert found == pytest.approx(by_art(classifier, theirs(classifier), digits_to_attack), abs=POINTS)


def test_square(classifier, relu: DenseNetwork, digits_to_attack: Split):
    # Random search: the two follow other random numbers. ART lets the squares shrink over the budget.
    ours = accuracy(relu, square(relu, *digits_to_attack, EPS, queries=500, rescale=True), digits_to_attack.y)
    attack = evasion.SquareAttack(classifier, eps=EPS, max_iter=500, p_init=0.8, batch_size=200, verbose=False)
    assert ours < accuracy(relu, *digits_to_attack) - 0.05
    assert ours == pytest.approx(by_art(classifier, attack, digits_to_attack), abs=POINTS)


def test_carlini_and_wagner(classifier, relu: DenseNetwork, digits_to_attack: Split):
    few = Split(digits_to_attack.x[:30], digits_to_attack.y[:30])
    attack = evasion.CarliniL2Method(
        classifier, max_iter=20, binary_search_steps=4, learning_rate=0.1, batch_size=30, verbose=False
    )
    adversarial = torch.from_numpy(attack.generate(few.x.numpy(), few.y.numpy()))
    relu.requires_grad_(True)
    fooled = relu(adversarial).argmax(1) != few.y
    bound = float((adversarial - few.x).flatten(1).norm(dim=1)[fooled].median())
    theirs = 1 - float((fooled & ((adversarial - few.x).flatten(1).norm(dim=1) <= bound)).float().mean())
    # Ours searches longer; it may be stronger, never weaker.
    assert accuracy(relu, cw_l2(relu, *few, bound), few.y) <= theirs + POINTS
