"""The adaptive worst counts the attacks that know of the caps, input by input."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.robustness.data import Digits, Split
from benchmarks.robustness.evaluation.judge import Judgement, judge
from benchmarks.robustness.evaluation.settings import AttackSettings
from benchmarks.robustness.models import DenseNetwork

SETTINGS = AttackSettings(
    samples=40, batch_size=20, pgd_steps=5, apgd_steps=20, square_queries=5, cw_samples=0, bounds=(0.1,)
)
EXACT = ("clean", "fgsm", "pgd", "apgd_ce", "apgd_dlr", "square")
AWARE = ("straight_through", "soft", "uncapped", "transfer")


@pytest.fixture(scope="module")
def judged(
    masked: DenseNetwork, relu: DenseNetwork, some: Split, images: Digits, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Judgement, dict[str, torch.Tensor]]:
    file: Path = tmp_path_factory.mktemp("judged") / "found.pt"
    found = judge(masked, relu, some, images.validation.x, SETTINGS, file=file)
    return found, torch.load(file)["right"]


def test_worst_is_per_input_over_every_attack(judged: tuple[Judgement, dict[str, torch.Tensor]]):
    found, right = judged
    assert set(found.accuracy) == {*EXACT, *AWARE}
    paper = torch.stack([right[name] for name in EXACT]).all(0)
    everything = torch.stack([right[name] for name in (*EXACT, *AWARE)]).all(0)
    assert found.paper_worst == pytest.approx(paper.float().mean().item())
    assert found.worst == pytest.approx(everything.float().mean().item())
    # The caps hide the gradient: what knows of them finds far more, so leaving it out would show.
    assert found.worst < found.paper_worst - 0.2
    assert found.zero_gradient > 0.6


def test_worst_at_a_bound(judged: tuple[Judgement, dict[str, torch.Tensor]]):
    found, right = judged
    names = ["clean", *(f"{name} at 0.1" for name in ("apgd_ce", *AWARE))]
    expected = torch.stack([right[name] for name in names]).all(0).float().mean().item()
    assert found.bounds["0.1"]["worst"] == pytest.approx(expected)
    assert found.bounds["0.1"]["worst"] < found.bounds["0.1"]["apgd_ce"] - 0.2


def test_more_samples_than_there_are(masked: DenseNetwork, some: Split):
    with pytest.raises(ValueError, match="samples: got 61; expected at most the 60"):
        judge(masked, None, some, some.x, replace(SETTINGS, samples=61))
