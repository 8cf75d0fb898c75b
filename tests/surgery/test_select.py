"""Which sites are chosen."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from dreluop.surgery import replace_activations, set_caps
from tests.surgery.helpers import d_relus, open_caps
from tests.surgery.models import (
    ResidualBlock,
)


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        ("relu_1", ["relu_1"]),
        (["relu", "relu_2"], ["relu", "relu_2"]),
        (lambda site: site.source.endswith("call 2 of 3"), ["relu_1"]),
        (None, ["relu", "relu_1", "relu_2"]),
    ],
    ids=["pattern", "patterns", "function", "all"],
)
def test_select(select: Any, expected: list[str]) -> None:
    original = ResidualBlock(6, 3, True)
    model = copy.deepcopy(original)
    report = replace_activations(model, select=select)
    assert [site.name for site in report.replaced] == expected == list(d_relus(model))
    assert all(site.reason == "not selected" for site in report.left)
    open_caps(model, report)
    x = torch.randn(2, 6, 5, 5)
    assert torch.equal(model(x), original(x))
    set_caps(model, 1e-3)
    assert not torch.equal(model(x), original(x))


@pytest.mark.parametrize("select", [["relu", "x*"], "x*", ["relu_2", "relu", "r"]])
def test_every_pattern_must_match(select: Any) -> None:
    model = ResidualBlock(6, 3, True)
    with pytest.raises(ValueError, match=r"select: '.*' matches none of the 3 sites, such as 'relu'"):
        replace_activations(model, select=select)
    with pytest.raises(ValueError, match="select: got no pattern; expected at least one"):
        replace_activations(model, select=[])
    assert type(model) is ResidualBlock


def test_select_all_but_some() -> None:
    report = replace_activations(ResidualBlock(6, 3, True), select=lambda site: site.name != "relu_1")
    assert [site.name for site in report.left] == ["relu_1"]
