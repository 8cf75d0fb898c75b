"""set_caps, freeze_caps, cap_summary."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from dreluop import DReLU, LazyDReLU, SReLU
from dreluop.surgery import cap_summary, freeze_caps, set_caps


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 3), DReLU(3), nn.Linear(3, 2), DReLU(), SReLU(2.0))


def test_set_caps_by_number_name_tensor_and_pattern() -> None:
    model = network()
    assert set_caps(model, 2.5) == ["1", "3"]
    assert model[1].cap.tolist() == [2.5] * 3
    assert set_caps(model, {"1": torch.tensor([1.0, 2.0, 3.0]), "3": math.inf}) == ["1", "3"]
    assert (model[1].cap.tolist(), model[3].cap.tolist()) == ([1, 2, 3], [math.inf])
    assert set_caps(model, 7.0, select="3") == ["3"]
    assert (model[1].cap.tolist(), model[3].cap.tolist(), model[4].cap.tolist()) == ([1, 2, 3], [7], [2])
    assert model[1].cap.requires_grad


def test_freeze_caps() -> None:
    model = network()
    model(torch.randn(2, 4)).sum().backward()
    assert freeze_caps(model, select=["1"]) == ["1"]
    assert (model[1].cap.requires_grad, model[3].cap.requires_grad, model[1].cap.grad) == (False, True, None)
    assert freeze_caps(model, False) == ["1", "3"]
    assert model[1].cap.requires_grad


BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "zero": (lambda: set_caps(network(), 0.0), ValueError, "value of '1': got 0; expected only numbers > 0"),
    "nan": (lambda: set_caps(network(), math.nan), ValueError, "value of '1': got nan; expected only numbers > 0"),
    "type": (lambda: set_caps(network(), "2"), TypeError, "value of '1': got str; expected a number or a tensor"),
    "shape": (
        lambda: set_caps(network(), {"1": torch.ones(4)}), ValueError,
        r"value of '1': got shape \(4,\); expected the caps', \(3,\)",
    ),
    "dtype": (lambda: set_caps(network(), {"1": torch.ones(3).int()}), TypeError, "value of '1': got dtype torch.int"),
    "name": (lambda: set_caps(network(), {"2": 1.0}), ValueError, "value: got the name '2'; expected one of '1', '3'"),
    "pattern": (lambda: set_caps(network(), 1.0, select="x*"), ValueError, r"select: 'x\*' matches none of '1', '3'"),
    "select": (lambda: set_caps(network(), 1.0, select=3), TypeError, "select: got int; expected a pattern"),
    "no_caps": (lambda: set_caps(nn.Linear(2, 2), 1.0), ValueError, "model: got a Linear without any DReLU"),
    "no_model": (lambda: freeze_caps([]), TypeError, "model: got list; expected a torch.nn.Module"),
    "frozen": (lambda: freeze_caps(network(), 1), TypeError, "frozen: got int; expected a bool"),
    "lazy": (lambda: set_caps(nn.Sequential(LazyDReLU()), 1.0), ValueError, "its LazyDReLU '0' has no shape yet"),
    "summary": (lambda: cap_summary(nn.Linear(2, 2)), ValueError, "model: got a Linear without any DReLU or SReLU"),
    "loader": (lambda: cap_summary(network(), torch.ones(2, 4)), TypeError, "loader: got a Tensor"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_argument(name: str) -> None:
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()


def test_nothing_is_set_where_one_value_is_bad() -> None:
    model = network()
    with pytest.raises(ValueError, match="value of '3'"):
        set_caps(model, {"1": 1.0, "3": -1.0})
    assert model[1].cap.tolist() == [100] * 3


def test_summary_of_the_caps_alone() -> None:
    model = network()
    set_caps(model, {"1": torch.tensor([1.0, 2.0, 6.0])})
    summary = cap_summary(model)
    first, second, fixed = summary.layers
    assert (first.granularity, first.caps, first.cap_min, first.cap_median, first.cap_max) == ("channel", 3, 1, 2, 6)
    assert (second.granularity, fixed.cap_max) == ("layer", 2)
    assert math.isnan(first.capped)
    assert str(summary).splitlines()[0].split("  ")[0] == "layer"


def test_summary_over_a_loader_counts_every_sample() -> None:
    x = torch.randn(60, 3, 4, 4) * 2 + 0.5
    x[7] = -1
    x[8], x[9, 0] = 9, 9
    x[9, 1:] = -3
    layer = DReLU(3)
    set_caps(nn.Sequential(layer), {"0": torch.tensor([0.5, 1.0, 3.0])})
    (row,) = cap_summary(nn.Sequential(layer), x.split(11), progress=False).layers
    cap = layer.cap.detach().reshape(3, 1, 1)
    inside = (x > 0) & (x < cap)
    assert row.off == pytest.approx((x <= 0).double().mean().item())
    assert row.inside == pytest.approx(inside.double().mean().item())
    assert row.capped == pytest.approx((x >= cap).double().mean().item())
    assert row.off + row.inside + row.capped == pytest.approx(1)
    assert row.no_live == pytest.approx((~inside.flatten(1).any(1)).double().mean().item())
    assert row.no_live >= 3 / 60
    std = x.transpose(0, 1).flatten(1).std(1, correction=0)
    assert row.cap_over_std == pytest.approx((cap.flatten() / std).median().item(), rel=1e-4)


def test_summary_with_neuron_and_layer_caps() -> None:
    x = torch.randn(40, 3, 2)
    neuron, layer = DReLU((3, 2), init=0.7), SReLU(1.5)
    rows = cap_summary(nn.Sequential(neuron, layer), x.split(9)).layers
    assert [row.granularity for row in rows] == ["neuron", "layer"]
    assert rows[0].cap_over_std == pytest.approx((0.7 / x.std(0, correction=0)).median().item(), rel=1e-4)
    y = x.clamp(0, 0.7)
    assert rows[1].cap_over_std == pytest.approx(1.5 / y.std(correction=0).item(), rel=1e-4)
    assert rows[1].capped == 0
