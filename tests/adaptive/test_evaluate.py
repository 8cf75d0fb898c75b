"""``evaluate``: the adaptive worst counts the attacks that know of the caps, input by input, for any classifier."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dreluop
from dreluop.adaptive import AttackBudget, Evaluation, Outcomes, evaluate
from dreluop.adaptive.attacks import accuracy, fgsm, margin, pgd, zero_gradient_share
from dreluop.adaptive.evaluation import BLIND
from dreluop.adaptive.evaluation.columns import blind_share
from dreluop.adaptive.evaluation.evaluating import _l2_worst
from studies.drelu_paper.data import Digits, Split
from studies.drelu_paper.models import DenseNetwork

needs_packages = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("pyautoattack", "foolbox")), reason="dreluop[robustness]"
)
EPS = 0.1
BUDGET = AttackBudget(batch_size=20, pgd_steps=5, apgd_steps=20, square_queries=5, cw_samples=0, bounds=(0.1,))
FEW = replace(BUDGET, pgd_steps=1, square_queries=1, bounds=(), cw_samples=10, cw_steps=2)
STANDARD = ("fgsm", "pgd", "apgd_ce", "apgd_dlr", "square")
AWARE = ("straight_through", "soft", "margin", "uncapped", "transfer")


def test_a_protected_network_is_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 5), dreluop.DReLU(above="zero"), nn.Linear(5, 3))
    with pytest.raises(ValueError, match=r"model: 2 has above=.zero.*evaluate the network as it was before"):
        evaluate(model, torch.rand(3, 1, 2, 2), torch.arange(3), 0.1)


@pytest.fixture(scope="module")
def evaluated(
    masked: DenseNetwork, relu: DenseNetwork, some: Split, images: Digits
) -> tuple[Evaluation, dict[str, Tensor]]:
    x, y = some.x[:40], some.y[:40]
    outcomes = Outcomes()
    found = evaluate(
        masked, x, y, EPS, budget=BUDGET, measured_on=images.validation.x, baseline=relu, outcomes=outcomes
    )
    return found, outcomes.right


@pytest.mark.slow
@needs_packages
def test_worst_is_per_input_over_every_attack(evaluated: tuple[Evaluation, dict[str, Tensor]]):
    found, right = evaluated
    assert set(found.accuracy) == {"clean", *STANDARD, *AWARE}
    standard = torch.stack([right[name] for name in ("clean", *STANDARD)]).all(0)
    everything = torch.stack([right[name] for name in ("clean", *STANDARD, *AWARE)]).all(0)
    assert found.white_box_worst == pytest.approx(standard.float().mean().item())
    assert found.worst == pytest.approx(everything.float().mean().item())
    # The caps hide the gradient: what knows of them finds far more, so leaving it out would show.
    assert found.worst < found.white_box_worst - 0.2
    assert found.zero_gradient > 0.6
    assert 0 < found.caps.live_units < 128
    assert found.left_out == {}


@pytest.mark.slow
@needs_packages
def test_worst_at_a_bound(evaluated: tuple[Evaluation, dict[str, Tensor]]):
    found, right = evaluated
    names = ["clean", *(f"{name} at 0.1" for name in ("apgd_ce", *AWARE))]
    expected = torch.stack([right[name] for name in names]).all(0).float().mean().item()
    assert found.bounds["0.1"]["worst"] == pytest.approx(expected)
    assert found.bounds["0.1"]["worst"] < found.bounds["0.1"]["apgd_ce"] - 0.2


def capped_by(masked: DenseNetwork, form: str) -> nn.Module:
    """The same weights and the same function, its caps made in another way."""
    model = copy.deepcopy(masked)
    cap = model.activation.cap.detach().clone()
    number = float(cap[0])
    assert (cap == number).all()
    forms = {
        "DReLU": lambda: model.activation,
        "SReLU": lambda: dreluop.SReLU(cap),
        "capped_relu, tensor": lambda: Function(lambda x: dreluop.capped_relu(x, cap)),
        "capped_relu, a new tensor each time": lambda: Function(lambda x: dreluop.capped_relu(x, cap * 1)),
        "capped_relu, number": lambda: Function(lambda x: dreluop.capped_relu(x, number)),
        "clamp": lambda: Function(lambda x: torch.minimum(x.clamp(min=0), cap)),
    }
    model.activation = forms[form]()
    return model.eval()


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def few_evaluated_by(model: nn.Module, some: Split, images: Digits, **options: Any) -> Evaluation:
    x, y = some.x[:20], some.y[:20]
    return evaluate(model, x, y, EPS, **{"budget": FEW, "measured_on": images.validation.x, **options})


@pytest.fixture(scope="module")
def few_evaluated(masked: DenseNetwork, some: Split, images: Digits) -> Evaluation:
    return few_evaluated_by(masked, some, images)


@pytest.mark.slow
@needs_packages
@pytest.mark.parametrize(
    "form", ["SReLU", "capped_relu, tensor", "capped_relu, a new tensor each time", "capped_relu, number"]
)
def test_every_capped_activation_is_attacked_through_its_cap(
    form: str, few_evaluated: Evaluation, masked: DenseNetwork, some: Split, images: Digits
):
    expected = few_evaluated
    found = few_evaluated_by(capped_by(masked, form), some, images)
    assert expected.worst < expected.white_box_worst - 0.2
    for name in ("straight_through", "soft", "margin"):
        assert found.accuracy[name] == pytest.approx(expected.accuracy[name], abs=0.1)
    assert found.worst == pytest.approx(expected.worst, abs=0.06)
    assert found.l2_worst == pytest.approx(expected.l2_worst, abs=0.11)
    assert found.blind == 0
    assert found.zero_gradient == expected.zero_gradient > 0.6
    assert ("uncapped" in found.accuracy) is (form == "SReLU")
    assert (found.caps is None) is (form != "SReLU")


@pytest.mark.slow
@needs_packages
def test_a_cap_that_no_surrogate_reaches_is_no_number(
    few_evaluated: Evaluation, masked: DenseNetwork, some: Split, images: Digits
):
    found = few_evaluated_by(capped_by(masked, "clamp"), some, images)
    assert "straight_through" not in found.accuracy
    assert found.blind > 0.6 > BLIND
    # The number that would have been taken for robustness.
    assert found.worst > few_evaluated.worst + 0.1


@needs_packages
def test_worst_in_l2_is_per_input_over_both_attacks(masked: DenseNetwork, some: Split, images: Digits):
    budget = replace(FEW, cw_steps=30, cw_searches=2, cw_bounds=(1.0, 3.0))
    outcomes = Outcomes()
    found = few_evaluated_by(masked, some, images, budget=budget, outcomes=outcomes, attacks=("fgsm", "cw_l2"))
    right = outcomes.right["margin_l2"] & (outcomes.distances > 1.0)
    assert found.l2_worst == pytest.approx(right.float().mean().item())
    assert found.l2_worst < found.cw["1"] - 0.2
    assert len(right) == FEW.cw_samples


def test_the_worst_in_l2_joins_what_both_attacks_found():
    budget, outcomes = replace(FEW, cw_bounds=(3.0, 1.0)), Outcomes()
    assert _l2_worst(outcomes, budget) is None
    outcomes.right["margin_l2"] = torch.tensor([True, True, False, False])
    outcomes.distances = torch.tensor([2.0, 0.5, 2.0, 0.5])
    assert _l2_worst(outcomes, budget) == 0.25


def test_an_input_is_blind_where_no_pixel_has_a_gradient():
    linear = nn.Linear(4, 3)
    with torch.no_grad():
        linear.weight[:, 0] = 0
    x, y = torch.rand(6, 4), torch.zeros(6, dtype=torch.int64)
    model = nn.Sequential(linear, dreluop.SReLU(1e-6), nn.Linear(3, 3))
    assert blind_share(linear, x, y, None) == 0
    assert blind_share(model, x, y, None) == 1
    assert blind_share(model, x, y, 1.0) == 0
    with torch.no_grad():
        linear.weight.zero_()
    assert blind_share(model, x, y, 1.0) == 1


X = torch.rand(30, 4, generator=torch.Generator().manual_seed(0))


def plain(classes: int = 3) -> nn.Sequential:
    """Every class is the likeliest of some inputs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, classes)).eval()
    with torch.no_grad():
        model[3].bias -= model(X).median(0).values
    return model


def labels_of(model: nn.Module) -> Tensor:
    model.eval()
    return model(X).argmax(1)


@pytest.mark.parametrize("classes", [2, 3])
def test_a_plain_model_without_caps_and_without_the_packages(classes: int, monkeypatch: pytest.MonkeyPatch):
    """A table of numbers and few classes: what cannot run is named, and the numbers are those of the attacks."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    model = plain(classes)
    y = labels_of(model)
    model.train()
    with pytest.warns(UserWarning, match="attacks left out: apgd_ce needs pyautoattack, which is not installed: pip"):
        found = evaluate(model, X, y, 0.2, budget=AttackBudget(pgd_steps=7, apgd_steps=5, seed=3))
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())
    expected = {
        "clean": 1.0,
        "fgsm": accuracy(model, fgsm(model, X, y, 0.2), y),
        "pgd": accuracy(model, pgd(model, X, y, 0.2, 7, seed=3), y),
        "margin": accuracy(model, margin(model, X, y, 0.2, 5, 3), y),
    }
    assert found.accuracy == expected
    assert found.white_box_worst <= min(expected["fgsm"], expected["pgd"])
    assert found.worst < found.white_box_worst < 1
    assert (found.samples, found.eps, found.caps, found.cw, found.l2_worst) == (30, 0.2, None, {}, None)
    assert found.zero_gradient == zero_gradient_share(model, X, y)
    assert found.left_out.keys() == {"apgd_ce", "apgd_dlr", "square", "apgd_targeted", "cw_l2"}


@needs_packages
def test_attacks_are_chosen_by_name_and_batches_change_only_the_seeds():
    model = plain()
    y = labels_of(model)
    found = evaluate(model, X, y, 0.2, attacks=("margin", "fgsm"), budget=AttackBudget(batch_size=7))
    assert list(found.accuracy) == ["clean", "fgsm", "margin"]
    assert found.accuracy["fgsm"] == pytest.approx(accuracy(model, fgsm(model, X, y, 0.2), y))
    with pytest.warns(UserWarning, match=r"x: got shape \(30, 4\); square needs images.*got 3 classes"):
        everything = evaluate(model, X, y, 0.2, budget=AttackBudget(pgd_steps=2, apgd_steps=2, cw_steps=2))
    assert {"apgd_ce", "apgd_dlr", "margin"} <= everything.accuracy.keys()
    assert everything.left_out.keys() == {"square", "apgd_targeted"}


@needs_packages
def test_caps_in_batch_norms_are_removed_too():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), dreluop.BatchNormDReLU1d(8, init=1.0), torch.nn.Linear(8, 5))
    budget = AttackBudget(pgd_steps=2, apgd_steps=2, square_queries=10, cw_samples=0)
    with pytest.warns(UserWarning, match="attacks left out: .*square needs images"):
        found = evaluate(model.eval(), X, labels_of(model), 0.2, budget=budget)
    assert {"uncapped", "straight_through", "soft", "margin"} <= found.accuracy.keys()
    assert found.caps.mean == 1


def test_what_outcomes_hold_is_not_run_again():
    model = plain()
    y = labels_of(model)

    class Seen(Outcomes):
        def begins(self, name: str) -> None:
            names.append(name)

        def ended(self) -> None:
            kept.append(set(self.right))

    names: list[str] = []
    kept: list[set[str]] = []
    outcomes = Seen(right={"fgsm": torch.zeros(30, dtype=torch.bool)})
    found = evaluate(model, X, y, 0.2, attacks=("fgsm", "pgd"), outcomes=outcomes)
    assert names == ["clean", "pgd"]
    assert kept == [{"fgsm", "clean"}, {"fgsm", "clean", "pgd"}]
    assert (found.accuracy["fgsm"], found.worst) == (0, 0)
    assert found.seconds.keys() == {"clean", "pgd"}


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": lambda x: x}, TypeError, "model: got function; expected a torch.nn.Module"),
        ({"model": Pair()}, ValueError, "model: its output is tuple; expected logits"),
        ({"model": nn.Flatten(0)}, ValueError, r"model: its output is shape \(4,\); expected logits"),
        ({"x": [1.0]}, TypeError, "x: got list; expected a torch.Tensor"),
        ({"x": X[:0]}, ValueError, r"x: got shape \(0, 4\); expected \(N, ...\) with at least one sample"),
        ({"x": X + 1}, ValueError, r"x: got values outside \[0, 1\] or NaN"),
        ({"x": X.long()}, TypeError, "x: got dtype torch.int64"),
        (
            {"y": torch.zeros(3, dtype=torch.int64)},
            ValueError,
            r"y: got torch.int64 of shape \(3,\); expected torch.int64",
        ),
        ({"y": torch.zeros(30)}, ValueError, "y: got torch.float32 of shape"),
        ({"y": torch.full((30,), 3)}, ValueError, "y: got labels from 3 to 3; expected 0 to 2"),
        ({"eps": -0.1}, ValueError, "eps: got -0.1; expected a finite number >= 0"),
        ({"eps": "big"}, TypeError, "eps: got str; expected a number"),
        ({"attacks": ("fgms",)}, ValueError, "attacks: got 'fgms'; expected some of fgsm, pgd"),
        (
            {"attacks": ("transfer",)},
            ValueError,
            "attacks: got 'transfer', which does not apply here; expected",
        ),
        ({"outcomes": Outcomes(right={"pgd": torch.ones(30)})}, ValueError, "pgd: got torch.float32 of shape"),
    ],
)
def test_bad_arguments(changes: dict[str, Any], error: type[Exception], message: str):
    model = plain()
    given = {"model": model, "x": X, "y": labels_of(model), "eps": 0.1, "attacks": ("fgsm",), **changes}
    with pytest.raises(error, match=message):
        evaluate(**given)


@needs_packages
def test_a_named_attack_that_cannot_run_is_an_error(monkeypatch: pytest.MonkeyPatch):
    model = plain()
    y = labels_of(model)
    with pytest.raises(ValueError, match=r"x: got shape \(30, 4\); square needs images"):
        evaluate(model, X, y, 0.1, attacks=("square",))
    with pytest.raises(ValueError, match="model: got 3 classes; apgd_targeted needs at least 4"):
        evaluate(model, X, y, 0.1, attacks=("apgd_targeted",))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"apgd_ce needs pyautoattack.* pip install 'dreluop\[robustness\]'"):
        evaluate(model, X, y, 0.1, attacks=("apgd_ce",))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: got 0; expected at least 1"),
        ({"cw_samples": -1}, "cw_samples: got -1; expected at least 0"),
        ({"cw_bounds": ()}, "cw_bounds: got none; expected at least one, or no cw_samples"),
        ({"bounds": (0.1, float("inf"))}, "bounds: got inf; expected finite numbers >= 0"),
        ({"bounds": (0.1, 0.10000001)}, "bounds: got 0.1 and 0.10000001; expected values that differ"),
    ],
)
def test_bad_budgets(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        AttackBudget(**options)
