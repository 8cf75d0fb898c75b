"""The attacks by packages: what they give lies in the ball, fools, and leaves everything else as it was."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("pyautoattack")
pytest.importorskip("foolbox")

from dreluop.adaptive.attacks import accuracy
from dreluop.adaptive.attacks.auto import apgd_ce, apgd_dlr, apgd_targeted, auto_attack, square
from dreluop.adaptive.attacks.carlini import carlini_wagner, cw_l2
from studies.drelu_paper.data import Split
from studies.drelu_paper.models import DenseNetwork

EPS = 0.1
CHEAP = {
    "apgd_ce": lambda *a: apgd_ce(*a, steps=10),
    "apgd_dlr": lambda *a: apgd_dlr(*a, steps=10),
    "apgd_targeted": lambda *a: apgd_targeted(*a, steps=10, targets=3),
    "apgd_ce, best kept": lambda *a: apgd_ce(*a, steps=10, keep_best=True),
    "square": lambda *a: square(*a, queries=100),
}


@pytest.fixture(params=CHEAP)
def attack(request: pytest.FixtureRequest):
    return CHEAP[request.param]


def test_stays_in_the_ball_and_fools(attack, relu: DenseNetwork, some: Split):
    adversarial = attack(relu, *some, EPS)
    assert adversarial.shape == some.x.shape
    assert (adversarial - some.x).abs().max() <= EPS + 1e-6
    assert 0 <= adversarial.min() <= adversarial.max() <= 1
    assert accuracy(relu, adversarial, some.y) < accuracy(relu, *some) - 0.2


def test_leaves_model_inputs_and_random_state_alone(attack, relu: DenseNetwork, some: Split):
    relu.train()
    x, before = some.x.clone(), torch.random.get_rng_state()
    state = {name: value.clone() for name, value in relu.state_dict().items()}
    attack(relu, some.x, some.y, EPS)
    assert relu.training
    assert all(parameter.requires_grad for parameter in relu.parameters())
    assert torch.equal(some.x, x)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(value, state[name]) for name, value in relu.state_dict().items())
    relu.eval()


def test_same_seed_same_result(attack, relu: DenseNetwork, some: Split):
    first = attack(relu, *some, EPS)
    torch.rand(1)
    assert torch.equal(attack(relu, *some, EPS), first)


@pytest.mark.parametrize(("x", "eps"), [(torch.full((1, 1, 28, 28), 1.5), EPS), (torch.zeros(1, 1, 28, 28), -0.1)])
def test_refuses_bad_input(attack, relu: DenseNetwork, x: Tensor, eps: float):
    with pytest.raises(ValueError, match=r"^(x|eps): got"):
        attack(relu, x, torch.zeros(1, dtype=torch.int64), eps)


def test_an_attack_that_gives_nan_is_refused(relu: DenseNetwork, some: Split, monkeypatch: pytest.MonkeyPatch):
    from dreluop.adaptive.attacks import auto  # noqa: PLC0415

    class Broken(auto.APGDAttack):
        def perturb(self, x, y, best_loss=False):
            return x + math.nan

    monkeypatch.setattr(auto, "APGDAttack", Broken)
    with pytest.raises(RuntimeError, match="NaN"):
        apgd_ce(relu, *some, EPS)


def test_the_best_point_is_kept_for_inputs_that_stay_right(masked: DenseNetwork, some: Split):
    given_up = apgd_ce(masked, *some, EPS, steps=3)
    kept = apgd_ce(masked, *some, EPS, steps=3, keep_best=True)
    right = masked(given_up).argmax(1) == some.y
    assert torch.equal(given_up[right], some.x[right])
    assert not torch.equal(kept[right], some.x[right])


@pytest.mark.parametrize(("attack", "classes"), [(apgd_dlr, 2), (apgd_targeted, 3), (auto_attack, 9)])
def test_too_few_classes(attack, classes: int):
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, classes))
    x, y = torch.rand(2, 1, 2, 2), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match=rf"model: got {classes} classes; this attack's loss needs at least"):
        attack(model, x, y, EPS)


@pytest.mark.parametrize("attack", [square, auto_attack])
def test_images_are_needed(attack, relu: DenseNetwork):
    with pytest.raises(ValueError, match=r"x: got shape \(2, 784\); expected images"):
        attack(relu, torch.rand(2, 784), torch.zeros(2, dtype=torch.int64), EPS)


def test_no_input_no_attack(relu: DenseNetwork):
    x, y = torch.zeros(0, 1, 28, 28), torch.zeros(0, dtype=torch.int64)
    assert carlini_wagner(relu, x, y)[1].shape == (0,)
    assert cw_l2(relu, x, y, 1.0).shape == x.shape


def test_steps_must_be_positive(relu: DenseNetwork, some: Split):
    with pytest.raises(ValueError, match="steps: got 0; expected at least 1"):
        apgd_ce(relu, *some, EPS, steps=0)
    with pytest.raises(ValueError, match="searches: got 0; expected at least 1"):
        carlini_wagner(relu, *some, searches=0)


@pytest.mark.slow
def test_auto_attack_is_at_least_as_strong_as_its_first_part(relu: DenseNetwork, some: Split):
    few = Split(some.x[:4], some.y[:4])
    first = accuracy(relu, apgd_ce(relu, *few, 0.03), few.y)
    assert accuracy(relu, auto_attack(relu, *few, 0.03), few.y) <= first


def test_carlini_and_wagner_find_near_inputs(relu: DenseNetwork, some: Split):
    few = Split(some.x[:20], some.y[:20])
    found, distance = carlini_wagner(relu, *few, steps=60, searches=4)
    wrong = relu(found).argmax(1) != few.y
    assert torch.equal(wrong, distance.isfinite())
    assert wrong.float().mean() > 0.9
    torch.testing.assert_close((found - few.x).flatten(1).norm(dim=1)[wrong], distance[wrong])
    # An input that is wrong by itself costs nothing, but for the rounding of foolbox' change of variables.
    already = relu(few.x).argmax(1) != few.y
    assert (distance[already] < 1e-3).all()
    bound = float(distance[~already & wrong].median())
    within = cw_l2(relu, *few, bound, steps=60, searches=4)
    moved = (within - few.x).flatten(1).norm(dim=1)
    assert (moved <= bound + 1e-5).all()
    assert torch.equal(relu(within).argmax(1) != few.y, distance <= bound)
