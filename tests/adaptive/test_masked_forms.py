"""Models that hide their caps or their whole gradient are attacked as hard as can be, or refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from dreluop import DReLU
from dreluop.adaptive import AttackBudget, Evaluation, evaluate, smooth_forward
from dreluop.adaptive.evaluation.columns import blind_share, with_widths

pytest.importorskip("pyautoattack")
pytest.importorskip("foolbox")

EPS = 0.03
BUDGET = AttackBudget(
    batch_size=12, pgd_steps=2, apgd_steps=20, square_queries=2, cw_samples=4, cw_steps=2, cw_searches=1
)
X = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
MEASURED_ON = torch.rand(50, 1, 8, 8, generator=torch.Generator().manual_seed(1))
SMALL = 1e-3


class Anew(nn.Module):
    """A parametrization that changes nothing but the tensor."""

    def forward(self, cap: Tensor) -> Tensor:
        return cap * 1

    def right_inverse(self, cap: Tensor) -> Tensor:
        return cap


def parametrized(cap: DReLU) -> None:
    parametrize.register_parametrization(cap, "cap", Anew())


def pruned(cap: DReLU) -> None:
    prune.identity(cap, "cap")


@pytest.fixture(scope="module")
def of_two_scales() -> nn.Sequential:
    """Standard deviations of about 0.3 and 1000 before the caps."""
    torch.manual_seed(0)
    first, second, last = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)
    with torch.no_grad():
        second.weight.mul_(1000 / SMALL)
        second.bias.mul_(1000)
    return nn.Sequential(nn.Flatten(), first, DReLU(64, init=SMALL), second, DReLU(64, init=1.0), last).eval()


def evaluated(model: nn.Module) -> Evaluation:
    with torch.no_grad():
        y = model(X).argmax(1)
    return evaluate(model, X, y, EPS, budget=BUDGET, measured_on=MEASURED_ON)


@pytest.fixture(scope="module")
def expected(of_two_scales: nn.Sequential) -> Evaluation:
    found = evaluated(of_two_scales)
    assert found.worst == 0
    assert found.white_box_worst > 0.5
    return found


@pytest.mark.slow
@pytest.mark.parametrize("change", [parametrized, pruned])
@pytest.mark.parametrize("places", [(4,), (2, 4)], ids=["the second", "both"])
def test_caps_made_anew_keep_the_width_of_their_layer(
    change, places, of_two_scales: nn.Sequential, expected: Evaluation
):
    model = copy.deepcopy(of_two_scales)
    for place in places:
        change(model[place])
    found = evaluated(model)
    assert found.accuracy == expected.accuracy
    assert (found.worst, found.l2_worst, found.blind) == (expected.worst, expected.l2_worst, expected.blind)


def test_widths_in_order_are_those_by_name(of_two_scales: nn.Sequential):
    model = copy.deepcopy(of_two_scales)
    attacked, std = with_widths(of_two_scales, MEASURED_ON)
    assert attacked is of_two_scales
    parametrized(model[4])
    wrapped, placeholder = with_widths(model, MEASURED_ON)
    for tau in (0.3, 0.01):
        with smooth_forward(tau, std=std):
            expected = of_two_scales(X)
        for _ in range(2):
            with smooth_forward(tau, std=placeholder):
                assert torch.equal(wrapped(X), expected)
    assert torch.equal(wrapped(X), model(X))


def test_another_order_of_caps_is_an_error():
    class Unsteady(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.cap = nn.Linear(64, 10), DReLU(10, init=SMALL)
            parametrized(self.cap)

        def forward(self, x: Tensor) -> Tensor:
            y = self.cap(self.linear(x.flatten(1)))
            return y if len(x) > 12 or len(x) == 2 else self.cap(y)

    attacked, std = with_widths(Unsteady(), MEASURED_ON)
    with pytest.raises(RuntimeError, match=r"a cap of shape \(10,\) is called where there was none"):
        blind_share(attacked, X, torch.zeros(12, dtype=torch.int64), std)


class Step(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x > 0).float()


class WithoutGradient(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.model(x)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["step", "no_grad", "a parameter out of sight"])
def test_a_model_without_any_gradient_is_blind(form: str, of_two_scales: nn.Sequential):
    torch.manual_seed(0)
    model = {
        "step": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 64), Step(), nn.Linear(64, 10)),
        "no_grad": lambda: WithoutGradient(of_two_scales),
        "a parameter out of sight": lambda: nn.Sequential(WithoutGradient(of_two_scales), Shifted()),
    }[form]()
    with pytest.warns(UserWarning, match="no gradient to its input: it counts as zero for every input"):
        found = evaluated(model.eval())
    assert (found.zero_gradient, found.blind) == (1, 1)
    assert found.accuracy["clean"] == found.accuracy["fgsm"] == 1


class Shifted(nn.Module):
    """Its output is in a graph, which the input is no part of."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = [torch.zeros(10, requires_grad=True)]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shift[0]


def test_a_compiled_model_is_refused(of_two_scales: nn.Sequential):
    compiled = torch.compile(of_two_scales, backend="eager")
    with pytest.raises(ValueError, match=r"model: got one of torch\.compile; expected the model that was compiled"):
        evaluate(compiled, X, torch.zeros(12, dtype=torch.int64), EPS)
