"""to_plain: equal outputs, the same names, and nothing of dreluop left."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dreluop import DReLU, SReLU
from dreluop.surgery import freeze_caps, insert_head, insert_stem, replace_activations, set_caps, to_plain
from tests.patience import PATIENCE
from tests.surgery.models import OptionalArgument, SharedBlock, TwoModes, Users


def reachable(value: Any, seen: set[int]) -> list[str]:
    """The modules of dreluop that a network's modules come from."""
    return [type(module).__module__ for module in value.modules() if "dreluop" in type(module).__module__]


@pytest.mark.parametrize("granularity", ["layer", "channel", "neuron"])
@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "learning"])
def test_outputs_and_names_are_equal(granularity: Any, frozen: bool) -> None:
    model = Users().eval()
    insert_stem(model)
    insert_head(model)
    x = torch.randn(2, 3, 6, 6)
    replace_activations(model, granularity=granularity, init=0.2, example_input=x)
    freeze_caps(model, frozen)
    plain = to_plain(model)
    assert torch.equal(plain(x.clone()), model(x.clone()))
    assert not reachable(plain, set())
    assert b"dreluop" not in pickle.dumps(plain).replace(b"tests.surgery", b"")
    if not frozen:
        assert list(plain.state_dict()) == list(model.state_dict())
    hardtanhs = sum(isinstance(module, nn.Hardtanh) for module in plain.modules())
    assert (hardtanhs > 10) == (frozen and granularity == "layer")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cap_dtype", [torch.float32, torch.float64], ids=str)
def test_every_kind_of_cap_rounds_and_ties_alike(dtype: torch.dtype, cap_dtype: torch.dtype) -> None:
    x = torch.randn(4, 5, 3).to(dtype)
    x[0, 0, 0], x[0, 1, 0], x[0, 2, 0] = torch.inf, -torch.inf, torch.nan
    caps = (torch.rand(5) * 2 - 0.3).to(cap_dtype)
    x[1, :, 0] = caps.to(dtype)
    layers = [
        SReLU(caps), SReLU(caps, inplace=True), SReLU(0.1), SReLU(torch.tensor(-1.0)), SReLU(caps[:3], dim=-1),
        SReLU(torch.rand(5, 3).to(cap_dtype)), DReLU(init=0.7, dtype=cap_dtype), SReLU(torch.tensor([torch.inf])),
    ]  # fmt: skip
    for layer in layers:
        plain = to_plain(nn.Sequential(layer))
        got, want = plain(x.clone()), layer(x.clone())
        assert got.dtype is dtype
        assert torch.equal(got.nan_to_num(9), want.nan_to_num(9)), layer
        assert torch.equal(got.isnan(), want.isnan())


def test_a_root_that_was_rewritten_becomes_a_graph_module() -> None:
    model = OptionalArgument()
    replace_activations(model, init=0.3)
    plain = to_plain(model)
    x = torch.randn(3, 5)
    assert torch.equal(plain(x), model(x))
    assert type(plain).__name__ == "OptionalArgument"
    assert isinstance(plain, torch.fx.GraphModule)


def test_blocks_called_often_and_shared_caps() -> None:
    shared = SharedBlock()
    replace_activations(shared, init=0.3)
    layer = DReLU(5, init=0.2)
    twice = nn.Sequential(nn.Linear(5, 5), layer, nn.Linear(5, 5), layer)
    for model in (shared, twice):
        x = torch.randn(3, 5)
        assert torch.equal(to_plain(model)(x), model(x))
    plain = to_plain(twice)
    assert plain[1] is plain[3]


def test_modes_that_differ_need_eval() -> None:
    model = TwoModes()
    replace_activations(model, init=0.3)
    with pytest.raises(
        ValueError, match=r"the forward of a TwoModes differs between train and eval mode; call model.eval"
    ):
        to_plain(model)
    x = torch.randn(3, 6)
    assert torch.equal(to_plain(model.eval())(x), model(x))


def test_the_model_itself_is_left_as_it_is() -> None:
    model = Users()
    replace_activations(model, init=0.3)
    before, text = copy.deepcopy(model.state_dict()), repr(model)
    plain = to_plain(model)
    set_caps(model, 5.0)
    assert repr(model) == text
    caps = [value for name, value in plain.state_dict().items() if name.endswith("cap")]
    assert all(torch.equal(cap, before[name]) for name, cap in plain.state_dict().items())
    assert caps


def test_it_runs_where_dreluop_cannot_be_imported(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 3), DReLU(3, init=0.2), nn.Linear(3, 2), SReLU(0.5))
    x = torch.randn(5, 4)
    torch.save((to_plain(model), x, model(x).detach()), tmp_path / "plain.pt")
    code = (
        "import sys; sys.modules['dreluop'] = None\n"
        "import torch; model, x, y = torch.load('plain.pt', weights_only=False)\n"
        "assert torch.equal(model(x), y)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=PATIENCE)


def test_a_model_without_caps_is_refused() -> None:
    with pytest.raises(ValueError, match="model: got a Linear without any DReLU or SReLU"):
        to_plain(nn.Linear(2, 2))
