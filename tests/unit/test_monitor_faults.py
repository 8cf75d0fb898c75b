"""In eval mode the monitor warns of elements that a protected network drops."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from dreluop import DReLU, SReLU
from dreluop.caps.statistics import dropped_by_cap
from dreluop.diagnostics import SaturationMonitor, SaturationWarning

X = torch.tensor([[0.5, 1.5, -3.0, math.nan, math.inf, 2.0]])


@pytest.mark.parametrize(
    ("above", "nan", "dropped"),
    [
        ("cap", "propagate", []),
        ("zero", "propagate", [1, 4, 5]),
        ("cap", "zero", [3]),
        ("zero", "zero", [1, 3, 4, 5]),
    ],
)
@pytest.mark.parametrize("per", ["layer", "channel", "neuron"])
def test_what_a_cap_drops(above: Any, nan: Any, dropped: list[int], per: str):
    caps = {"layer": torch.ones(1), "channel": torch.ones(6), "neuron": torch.ones(6, 2)}[per]
    layer = SReLU(caps, above=above, nan=nan)
    x = X[..., None].expand(1, 6, 2) if per == "neuron" else X
    found = dropped_by_cap(layer, x).view(6, -1)[:, 0]
    assert found.nonzero().flatten().tolist() == dropped
    # What it gives for them is 0, where the plain form gives something else.
    plain, mine = (SReLU(caps, **options)(x).view(6, -1)[:, 0] for options in ({}, {"above": above, "nan": nan}))
    differs = ~plain.isclose(mine, equal_nan=True)
    assert differs.nonzero().flatten().tolist() == dropped
    assert not mine[dropped].any()


def test_an_element_that_equals_its_rounded_cap_is_kept():
    layer = SReLU(torch.tensor([0.999]), above="zero", nan="zero")
    x = torch.ones(4, 1).bfloat16()
    assert (layer(x) == 1).all() and not dropped_by_cap(layer, x).any()


def test_one_warning_in_eval_mode():
    model = nn.Sequential(nn.Identity(), SReLU(1.0, above="zero", nan="zero"), DReLU(init=5.0)).eval()
    with SaturationMonitor(model, every=2) as monitor:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model(X.clamp(max=1).nan_to_num(0.0))
            # Every second pass is looked at.
            model(X)
        with pytest.warns(SaturationWarning, match=r"pass 3 in eval mode: elements out of the range.*: 1 4$"):
            model(X)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model(X)
            model(X)
        assert monitor.step == 0 and monitor.latest is None


def test_plain_layers_and_training_are_left_alone():
    model = nn.Sequential(SReLU(1.0), DReLU(init=1.0))
    with SaturationMonitor(model, every=1), warnings.catch_warnings():
        warnings.simplefilter("error")
        model.eval()(X)
    protected = nn.Sequential(SReLU(1.0, above="zero", nan="zero"))
    with SaturationMonitor(protected, every=1), warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*out of the range of clean data")
        protected.train()(X)
