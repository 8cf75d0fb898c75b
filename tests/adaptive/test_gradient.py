from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import dreluop
from dreluop import SReLU
from dreluop.adaptive.attacks import accuracy, checks, fgsm, frozen, input_gradient, pgd, zero_gradient_share
from studies.drelu_paper.data import Digits, Split
from studies.drelu_paper.models import DenseNetwork, dense_drelu

EPS = 0.1
ATTACKS = pytest.mark.parametrize("attack", [fgsm, pgd])


@pytest.fixture
def linear() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3))


@pytest.fixture
def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.rand(9, 3, 4)
    x[0], x[1] = 0.0, 1.0
    return x, torch.arange(9) % 3


@ATTACKS
@pytest.mark.parametrize("eps", [0.0, 1e-3, EPS, 0.7])
def test_result_is_in_the_ball_and_in_range(attack, eps, linear, inputs):
    x, y = inputs
    adversarial = attack(linear, x, y, eps)
    assert adversarial.shape == x.shape
    assert adversarial.dtype == x.dtype
    assert not adversarial.requires_grad
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    distance = (adversarial - x).abs().max().item()
    assert distance <= eps + 1e-6
    assert distance >= eps - 1e-6


def test_fgsm_steps_along_the_sign(linear, inputs):
    x, y = inputs
    weight = linear[1].weight
    # Of softmax cross-entropy: W^T (p - onehot).
    error = linear(x).softmax(1) - nn.functional.one_hot(y, 3)
    expected = (x + EPS * (error @ weight).sign().reshape(x.shape)).clamp(0, 1)
    torch.testing.assert_close(fgsm(linear, x, y, EPS), expected)


def test_pgd_on_a_linear_model_reaches_the_corner_of_the_ball(inputs):
    # Two classes: the loss's gradient keeps its sign, so enough steps end where FGSM does.
    x, y = inputs
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    torch.testing.assert_close(pgd(model, x, y % 2, EPS, steps=21), fgsm(model, x, y % 2, EPS))


def test_pgd_step_size_and_steps(inputs):
    x, y = inputs
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    start = pgd(model, x, y % 2, EPS, steps=1, step_size=0.0)
    after = pgd(model, x, y % 2, EPS, steps=3, step_size=0.01)
    # Not at the border of the ball or of [0, 1], every pixel moved by three steps.
    inner = ((after - x).abs() < EPS - 1e-4) & (after > 1e-4) & (after < 1 - 1e-4)
    assert inner.sum() > 20
    torch.testing.assert_close((after - start)[inner].abs(), torch.full((int(inner.sum()),), 0.03))
    default = pgd(model, x, y % 2, EPS, steps=3)
    torch.testing.assert_close(default, after)


def test_pgd_start_is_random_in_the_ball_and_seeded(linear, inputs):
    x, y = inputs
    starts = [pgd(linear, x, y, EPS, steps=1, step_size=0.0, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])
    moved = (starts[0] - x)[2:]
    assert moved.min() < -EPS / 2
    assert moved.max() > EPS / 2


def test_attacks_reduce_the_accuracy_of_a_trained_network(relu: DenseNetwork, images: Digits):
    x, y = images.test
    clean, by_fgsm = accuracy(relu, x, y), accuracy(relu, fgsm(relu, x, y, EPS), y)
    assert clean > 0.8
    assert by_fgsm < clean - 0.3
    assert accuracy(relu, pgd(relu, x, y, EPS, seed=0), y) < by_fgsm
    assert zero_gradient_share(relu, x, y) == 0
    assert clean == pytest.approx((relu(x).argmax(1) == y).float().mean().item())


def test_zero_gradient_share_is_1_where_the_caps_are_0(some: Split):
    model = dense_drelu(0)
    caps = [module.cap for module in model.modules() if isinstance(module, dreluop.DReLU)]
    assert caps
    for cap in caps:
        torch.nn.init.zeros_(cap)
    assert zero_gradient_share(model, *some) == 1
    assert torch.equal(fgsm(model, *some, EPS), some.x)


def test_zero_gradient_share_is_0_on_a_linear_model(linear, inputs):
    assert zero_gradient_share(linear, *inputs) == 0


def test_zero_gradient_share_counts_inputs_not_pixels():
    # One capped sample, one with half of its pixels capped, two inside.
    x = torch.tensor([[0.9, 0.8], [0.9, 0.2], [0.3, 0.2], [0.1, 0.4]])
    model = nn.Sequential(SReLU(0.5), nn.Linear(2, 2))
    assert zero_gradient_share(model, x, torch.tensor([0, 1, 0, 1])) == 0.25


def test_tiny_gradients_are_not_zero():
    # 1e-42 is a float32, 1e-42 / 1000 is not: a mean over the samples would lose it.
    model = nn.Linear(1, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1e-42], [-1e-42]]))
    assert zero_gradient_share(model, torch.full((1000, 1), 0.5), torch.zeros(1000, dtype=torch.int64)) == 0


@ATTACKS
def test_model_is_attacked_frozen_in_eval_mode_and_restored(attack, linear, inputs):
    seen = []
    model = nn.Sequential(linear, nn.Dropout(0.5), nn.BatchNorm1d(3))
    model.train()
    model[2].eval()
    linear[1].bias.requires_grad_(False)
    needs = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    modes = [module.training for module in model.modules()]

    def look(module, _):
        seen.append(any(m.training for m in module.modules()) or any(p.requires_grad for p in module.parameters()))

    hook = model.register_forward_pre_hook(look)
    attack(model, *inputs, EPS)
    hook.remove()
    assert seen
    assert not any(seen)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == needs
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())


def test_flags_are_restored_after_an_error(linear):
    linear.train()
    with pytest.raises(KeyError), frozen(linear):
        raise KeyError
    assert linear.training
    assert all(parameter.requires_grad for parameter in linear.parameters())


@ATTACKS
def test_inputs_are_left_alone_and_no_grad_is_no_obstacle(attack, linear, inputs):
    x, y = inputs
    before = x.clone()
    expected = attack(linear, x, y, EPS)
    with torch.no_grad():
        assert torch.equal(attack(linear, x.clone().requires_grad_(), y, EPS), expected)
    assert torch.equal(x, before)
    assert not x.requires_grad


@ATTACKS
@pytest.mark.parametrize("eps", [-0.1, math.nan, math.inf])
def test_bad_eps(attack, eps, linear, inputs):
    with pytest.raises(ValueError, match=f"eps: got {eps}; expected a finite number >= 0"):
        attack(linear, *inputs, eps)


@ATTACKS
@pytest.mark.parametrize("value", [-0.01, 1.01, math.nan])
def test_inputs_out_of_range(attack, value, linear, inputs):
    x, y = inputs
    x[4, 1, 2] = value
    with pytest.raises(ValueError, match=r"x: got values outside \[0, 1\] or NaN"):
        attack(linear, x, y, EPS)


def test_bad_pgd_options(linear, inputs):
    with pytest.raises(ValueError, match="steps: got 0; expected at least 1"):
        pgd(linear, *inputs, EPS, steps=0)
    with pytest.raises(ValueError, match="step_size: got -1; expected a finite number >= 0"):
        pgd(linear, *inputs, EPS, step_size=-1)


@ATTACKS
def test_nan_gradients_are_reported(attack, linear, inputs):
    with torch.no_grad():
        linear[1].weight[0, 0] = math.nan
    with pytest.raises(RuntimeError, match="has NaN in its input gradient"):
        attack(linear, *inputs, EPS)
    with pytest.raises(RuntimeError, match="has NaN in its input gradient"):
        zero_gradient_share(linear, *inputs)


@pytest.mark.parametrize(
    ("shift", "message"), [(0.2, "left the ball"), (0.6, r"left \[0, 1\]"), (math.nan, r"left \[0, 1\]")]
)
def test_a_result_that_cheats_is_refused(shift, message):
    x = torch.full((2, 3), 0.5)
    with pytest.raises(RuntimeError, match=message):
        checks.checked(x + shift, x, EPS)


def test_zero_gradient_share_needs_a_sample(linear):
    with pytest.raises(ValueError, match=r"x: got shape \(0, 3, 4\); expected at least one sample"):
        zero_gradient_share(linear, torch.rand(0, 3, 4), torch.zeros(0, dtype=torch.int64))


def test_each_gradient_is_its_own_sample_s(linear, inputs):
    x, y = inputs
    together = input_gradient(linear, x, y)
    alone = torch.cat([input_gradient(linear, x[i : i + 1], y[i : i + 1]) for i in range(len(x))])
    torch.testing.assert_close(together, alone)
