"""Momentum on margins: through smooth caps it finds what the other attacks find, in both norms."""

from __future__ import annotations

import math
from collections.abc import Collection

import pytest
import torch
from torch import nn

pytest.importorskip("pyautoattack")

from dreluop.adaptive import measure_std
from dreluop.adaptive.attacks import accuracy, pgd
from dreluop.adaptive.attacks import margins as module
from dreluop.adaptive.attacks.auto import apgd_targeted
from dreluop.adaptive.attacks.margins import margin
from dreluop.adaptive.attacks.through_caps import worst_of_soft
from studies.drelu_paper.data import Digits, Split
from studies.drelu_paper.models import DenseNetwork

EPS, NEAR, STEPS = 0.1, 1.5, 20


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "eps"), [("Linf", EPS), ("L2", NEAR)])
def test_it_finds_what_the_caps_hide(masked: DenseNetwork, some: Split, images: Digits, norm, eps: float):
    std = measure_std(masked, images.validation.x)
    adversarial = margin(masked, *some, eps, STEPS, std=std, norm=norm)
    change = (adversarial - some.x).flatten(1)
    assert change.norm(dim=1, p=math.inf if norm == "Linf" else 2).max() <= eps + 1e-5
    assert 0 <= adversarial.min() <= adversarial.max() <= 1
    found = accuracy(masked, adversarial, some.y)
    # By the exact gradient it is as blind as the others.
    assert found < accuracy(masked, margin(masked, *some, eps, STEPS, norm=norm), some.y) - 0.2
    if norm == "Linf":
        assert found <= accuracy(masked, worst_of_soft(masked, *some, eps, STEPS, std=std), some.y) + 0.02
    right = masked(adversarial).argmax(1) == some.y
    assert torch.equal(adversarial[right], some.x[right])


@pytest.mark.slow
def test_without_caps_it_is_as_strong_as_the_others(relu: DenseNetwork, some: Split):
    found = accuracy(relu, margin(relu, *some, 0.03, STEPS), some.y)
    assert found <= accuracy(relu, pgd(relu, *some, 0.03, STEPS), some.y)
    assert found <= accuracy(relu, apgd_targeted(relu, *some, 0.03, STEPS), some.y) + 0.02
    assert accuracy(relu, margin(relu, *some, NEAR, STEPS, norm="L2"), some.y) < 0.2


def test_what_it_finds_hangs_on_the_seed_alone(masked: DenseNetwork, some: Split, images: Digits):
    masked.train()
    std, before, x = measure_std(masked, images.validation.x), torch.random.get_rng_state(), some.x.clone()
    first = margin(masked, *some, EPS, 5, std=std)
    assert masked.training
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(some.x, x)
    torch.rand(1)
    assert torch.equal(margin(masked, *some, EPS, 5, std=std), first)
    assert not torch.equal(margin(masked, *some, EPS, 5, seed=1, std=std), first)
    masked.eval()


@pytest.mark.parametrize(
    ("finding", "rounds"), [((), 2), ((0,), 3), ((1,), 4), ((0, 2), 5), (range(module.ROUNDS), module.ROUNDS)]
)
def test_it_starts_again_until_two_rounds_in_a_row_find_nothing(
    finding: Collection[int], rounds: int, relu: DenseNetwork, some: Split, monkeypatch: pytest.MonkeyPatch
):
    starts: list[int] = []
    runs = 1 + module.TARGETS

    def run(self, steps, std, generator):
        starts.append(generator.initial_seed())
        fooled = torch.zeros(len(self.x), dtype=torch.bool)
        round_, number = divmod(len(starts) - 1, runs)
        fooled[0] = round_ in finding and number == 2
        return self.x, fooled

    monkeypatch.setattr(module._Run, "__call__", run)
    margin(relu, *some, 0.0, 1)
    assert len(starts) == len(set(starts)) == rounds * runs


def test_a_step_remembers_the_ones_before(monkeypatch: pytest.MonkeyPatch):
    gradients = iter(torch.tensor([[[0.0, 1.0]], [[1.0, -0.1]], [[1.0, -1.0]]]))
    points: list[torch.Tensor] = []

    def gradient(self, adversarial, caps):
        points.append(adversarial)
        return next(gradients)

    monkeypatch.setattr(module._Run, "_gradient", gradient)
    x, y = torch.full((1, 2), 0.5), torch.zeros(1, dtype=torch.int64)
    module._Run(nn.Identity(), x, y, 0.1, "Linf", None)(3, None, torch.Generator().manual_seed(0))
    start, first, second = (point[0] - x[0] for point in points)
    step = torch.tensor([0.0, 0.1])
    torch.testing.assert_close(first, (start + step).clamp(-0.1, 0.1))
    # The second gradient by itself would lower the second input.
    torch.testing.assert_close(second, (first + 0.1 * 2 / 3).clamp(-0.1, 0.1))


def test_bad_input(relu: DenseNetwork, some: Split):
    with pytest.raises(ValueError, match="eps: got -1"):
        margin(relu, *some, -1)
    with pytest.raises(ValueError, match="steps: got 0"):
        margin(relu, *some, EPS, 0)
    broken = nn.Sequential(nn.Flatten(), nn.Linear(784, 3))
    nn.init.constant_(broken[1].weight, math.nan)
    with pytest.raises(RuntimeError, match="the model's margin has NaN in its input gradient"):
        margin(broken, some.x, some.y % 3, EPS)
    empty = margin(relu, some.x[:0], some.y[:0], EPS)
    assert empty.shape == (0, 1, 28, 28)
    assert torch.equal(margin(relu, *some, 0.0, 2), some.x)


@pytest.mark.parametrize(("norm", "eps", "length"), [("Linf", 0.1, 64.0), ("L2", 0.2, 8.0)])
def test_gradients_too_small_to_be_squared_are_followed(norm, eps: float, length: float):
    model = nn.Linear(64, 2)
    x, y = torch.full((1, 64), 0.5), torch.ones(1, dtype=torch.int64)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1e-25], [0.0]]).expand(2, 64))
        # Half of what a step along the gradient can gain: no random start gains as much.
        model.bias.copy_(torch.tensor([0.0, (32 + eps * length / 2) * 1e-25]))
    assert int(model(x).argmax(1)) == 1
    assert int(model(margin(model, x, y, eps, 10, norm=norm)).argmax(1)) == 0
