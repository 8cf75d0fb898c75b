"""The adaptive worst counts the attacks that know of the caps, input by input."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import dreluop
from dreluop.adaptive.evaluation.budget import AttackSettings
from dreluop.adaptive.evaluation.columns import blind_share
from dreluop.adaptive.evaluation.evaluating import BLIND, Evaluation, _Evaluating, evaluate
from studies.drelu_paper.data import Digits, Split
from studies.drelu_paper.models import DenseNetwork

SETTINGS = AttackSettings(
    samples=40, batch_size=20, pgd_steps=5, apgd_steps=20, square_queries=5, cw_samples=0, bounds=(0.1,)
)
EXACT = ("clean", "fgsm", "pgd", "apgd_ce", "apgd_dlr", "square")
AWARE = ("straight_through", "soft", "margin", "uncapped", "transfer")


@pytest.fixture(scope="module")
def evaluated(
    masked: DenseNetwork, relu: DenseNetwork, some: Split, images: Digits, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Evaluation, dict[str, torch.Tensor]]:
    file: Path = tmp_path_factory.mktemp("evaluated") / "found.pt"
    found = evaluate(masked, relu, some, images.validation.x, SETTINGS, file=file)
    return found, torch.load(file)["right"]


def test_worst_is_per_input_over_every_attack(evaluated: tuple[Evaluation, dict[str, torch.Tensor]]):
    found, right = evaluated
    assert set(found.accuracy) == {*EXACT, *AWARE}
    paper = torch.stack([right[name] for name in EXACT]).all(0)
    everything = torch.stack([right[name] for name in (*EXACT, *AWARE)]).all(0)
    assert found.paper_worst == pytest.approx(paper.float().mean().item())
    assert found.worst == pytest.approx(everything.float().mean().item())
    # The caps hide the gradient: what knows of them finds far more, so leaving it out would show.
    assert found.worst < found.paper_worst - 0.2
    assert found.zero_gradient > 0.6


def test_worst_at_a_bound(evaluated: tuple[Evaluation, dict[str, torch.Tensor]]):
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


FEW = replace(SETTINGS, samples=20, pgd_steps=1, square_queries=1, bounds=(), cw_samples=10, cw_steps=2)


@pytest.fixture(scope="module")
def few_evaluated(masked: DenseNetwork, some: Split, images: Digits) -> Evaluation:
    return evaluate(masked, None, some, images.validation.x, FEW)


@pytest.mark.parametrize(
    "form", ["SReLU", "capped_relu, tensor", "capped_relu, a new tensor each time", "capped_relu, number"]
)
def test_every_capped_activation_is_attacked_through_its_cap(
    form: str, few_evaluated: Evaluation, masked: DenseNetwork, some: Split, images: Digits
):
    expected = few_evaluated
    found = evaluate(capped_by(masked, form), None, some, images.validation.x, FEW)
    assert expected.worst < expected.paper_worst - 0.2
    for name in ("straight_through", "soft", "margin"):
        assert found.accuracy[name] == pytest.approx(expected.accuracy[name], abs=0.1)
    assert found.worst == pytest.approx(expected.worst, abs=0.06)
    assert found.l2_worst == pytest.approx(expected.l2_worst, abs=0.11)
    assert found.blind == 0
    assert found.zero_gradient == expected.zero_gradient > 0.6
    assert ("uncapped" in found.accuracy) is (form == "SReLU")
    assert (found.caps is None) is (form != "SReLU")


def test_a_cap_that_no_surrogate_reaches_is_no_number(
    few_evaluated: Evaluation, masked: DenseNetwork, some: Split, images: Digits
):
    found = evaluate(capped_by(masked, "clamp"), None, some, images.validation.x, FEW)
    assert "straight_through" not in found.accuracy
    assert found.blind > 0.6 > BLIND
    # The number that would have been taken for robustness.
    assert found.worst > few_evaluated.worst + 0.1


def test_worst_in_l2_is_per_input_over_both_attacks(masked: DenseNetwork, some: Split, images: Digits, tmp_path: Path):
    settings = replace(FEW, cw_steps=30, cw_searches=2, cw_bounds=(1.0, 3.0))
    found = evaluate(masked, None, some, images.validation.x, settings, file=tmp_path / "found.pt")
    kept = torch.load(tmp_path / "found.pt")
    right = kept["right"]["margin_l2"] & (kept["distances"] > 1.0)
    assert found.l2_worst == pytest.approx(right.float().mean().item())
    assert found.l2_worst < found.cw["1"] - 0.2
    assert len(right) == FEW.cw_samples
    without = replace(FEW, samples=1, apgd_steps=1, cw_samples=0)
    assert evaluate(masked, None, some, images.validation.x, without).l2_worst is None


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


def test_the_worst_in_l2_joins_what_both_attacks_found():
    settings = replace(FEW, cw_bounds=(3.0, 1.0))
    nothing = Split(torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64))
    evaluating = _Evaluating(nn.Identity(), nothing, settings, None, lambda name: None)
    assert evaluating._l2_worst() is None
    evaluating.found.right["margin_l2"] = torch.tensor([True, True, False, False])
    evaluating.found.distances = torch.tensor([2.0, 0.5, 2.0, 0.5])
    assert evaluating._l2_worst() == 0.25


def test_more_samples_than_there_are(masked: DenseNetwork, some: Split):
    with pytest.raises(ValueError, match="samples: got 61; expected at most the 60"):
        evaluate(masked, None, some, some.x, replace(SETTINGS, samples=61))
