"""to_torch: equal outputs, the same names, and nothing of dreluop left."""

from __future__ import annotations

import copy
import pickle
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import prune, spectral_norm, weight_norm

from dreluop import DReLU, SReLU
from dreluop.surgery import freeze_caps, insert_head, insert_stem, replace_activations, set_caps, to_torch
from dreluop.surgery.sites import ResidualDReLU
from tests.support import oracle
from tests.support.cases import special_values
from tests.support.patience import PATIENCE
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
    plain = to_torch(model)
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
        SReLU(caps[:4], dim=0),
    ]  # fmt: skip
    for layer in layers:
        plain = to_torch(nn.Sequential(layer))
        got, want = plain(x.clone()), layer(x.clone())
        assert got.dtype is dtype
        assert torch.equal(got.nan_to_num(9), want.nan_to_num(9)), layer
        assert torch.equal(got.isnan(), want.isnan())


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("options", [("zero", "propagate"), ("cap", "zero"), ("zero", "zero")], ids="-".join)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_zeroed_stays_zeroed(dtype: torch.dtype, options: tuple[Any, Any], inplace: bool) -> None:
    more: dict[str, Any] = {"inplace": inplace, "above": options[0], "nan": options[1]}
    caps = torch.tensor([1.0, 0.5, -1.0, torch.nan, torch.inf])
    values = special_values(dtype)
    x = values.repeat(5, 1).T.reshape(-1, 5, 1).repeat(1, 1, 3)
    x[0, :, 1] = caps.to(dtype)
    layers = [
        SReLU(caps, **more), SReLU(1.0, **more), SReLU(torch.nan, **more), SReLU(torch.rand(5, 3), **more),
        DReLU(3, init=0.7, dim=-1, **more), ResidualDReLU(init=0.7, **more),
        ResidualDReLU(5, init=0.7, sum_inplace=True, **more),
    ]  # fmt: skip
    for layer in layers:
        plain = to_torch(nn.Sequential(layer))[0]
        assert not reachable(plain, set())
        residual = [torch.randn(x.shape).to(dtype)] if isinstance(layer, ResidualDReLU) else []
        results = []
        for module in (plain, layer):
            leaf = x.clone().requires_grad_()
            given = leaf * 1
            y = module(given, *residual)
            assert (y is given) == (inplace and (not residual or layer.sum_inplace)) or module is plain
            # Neither at ties nor for NaN does torch promise a gradient.
            (gradient,) = torch.autograd.grad(y.nan_to_num(0, 0, 0).float().sum(), leaf)
            results.append((y.detach(), gradient))
        oracle.assert_same_bits(results[0][0] + 0.0, results[1][0])
        if options[0] == "zero" and layer.cap.isfinite().all():
            finite = results[1][0].isfinite()
            assert torch.equal(results[0][1][finite], results[1][1][finite])


def test_a_root_that_was_rewritten_becomes_a_graph_module() -> None:
    model = OptionalArgument()
    replace_activations(model, init=0.3)
    plain = to_torch(model)
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
        assert torch.equal(to_torch(model)(x), model(x))
    plain = to_torch(twice)
    assert plain[1] is plain[3]


def test_modes_that_differ_need_eval() -> None:
    model = TwoModes()
    replace_activations(model, init=0.3)
    with pytest.raises(
        ValueError, match=r"the forward of a TwoModes differs between train and eval mode; call model.eval"
    ):
        to_torch(model)
    x = torch.randn(3, 6)
    assert torch.equal(to_torch(model.eval())(x), model(x))


def test_the_model_itself_is_left_as_it_is() -> None:
    model = Users()
    replace_activations(model, init=0.3)
    before, text = copy.deepcopy(model.state_dict()), repr(model)
    plain = to_torch(model)
    set_caps(model, 5.0)
    assert repr(model) == text
    caps = [value for name, value in plain.state_dict().items() if name.endswith("cap")]
    assert all(torch.equal(cap, before[name]) for name, cap in plain.state_dict().items())
    assert caps


def test_it_runs_where_dreluop_cannot_be_imported(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 3), DReLU(3, init=0.2), nn.Linear(3, 2), SReLU(0.5))
    x = torch.randn(5, 4)
    torch.save((to_torch(model), x, model(x).detach()), tmp_path / "plain.pt")
    code = (
        "import sys; sys.modules['dreluop'] = None\n"
        "import torch; model, x, y = torch.load('plain.pt', weights_only=False)\n"
        "assert torch.equal(model(x), y)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=PATIENCE)


def test_a_model_without_caps_is_refused() -> None:
    with pytest.raises(ValueError, match="model: got a Linear without any DReLU or SReLU"):
        to_torch(nn.Linear(2, 2))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.drop = nn.Linear(4, 4), nn.Dropout()
        self.relu, self.relu_1 = DReLU(4, init=0.3), DReLU(4, init=0.2)
        self.shift, self.count, self.log = torch.ones(4), 0, []
        self.steps: Tensor
        self.register_buffer("steps", torch.zeros(4))


def rewritten(forward: Callable[..., Any]) -> Any:
    """A block whose class surgery generated."""
    torch.manual_seed(0)
    block = Block().eval()
    block.__class__ = type("Block", (Block,), {"forward": forward, "rewritten": object(), "__module__": __name__})
    return block


def call_site(site: nn.Module, called: nn.Module, x: Any) -> Any:
    return site(x) if isinstance(called, nn.ReLU | DReLU) else called(x)


def sites(self: Any, x: Any) -> Any:
    return call_site(self.relu_1, self.relu, self.linear(self.relu(x)))


def writes(self: Any, x: Any) -> Any:
    held = x
    x += 1
    x *= self.steps
    return self.relu(held)


def sizes(self: Any, x: Any) -> Any:
    rows, columns = x.shape
    size = rows
    size += columns
    return self.relu(x) * size + rows + torch.arange(columns, device=x.device)


def annotated(self: Any, x: Tensor, scale: "Unknown" = 2.0) -> "Unknown":  # type: ignore # noqa: F821, UP037
    return self.relu(x) * scale


FORWARDS: dict[str, Callable[..., Any]] = {
    "call_sites": sites,
    "no_buffer": lambda self, x: self.relu(self.linear(x) + self.shift * 2).to(self.shift.dtype),
    "writes": writes,
    "sizes": sizes,
    "numpy": lambda self, x: self.relu(x) * np.sqrt(2) + np.float32(0.1) - np.int64(3),
    "parameters": lambda self, x: functional.linear(self.relu(x), self.linear.weight, self.linear.bias),
    "modes": lambda self, x: functional.dropout(self.relu(x), 0.5, self.training),
    "annotations": annotated,
    "several": lambda self, x: {"y": self.relu(x), "all": (x, self.steps)},
}


def pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def flat(output: Any) -> list[Tensor]:
    return [output["y"], *output["all"]] if isinstance(output, dict) else [output]


@pytest.mark.parametrize("name", FORWARDS)
@pytest.mark.parametrize("how", ["made", "copied", "pickled"])
def test_a_rewritten_forward_does_the_same(name: str, how: str) -> None:
    model = nn.Sequential(rewritten(FORWARDS[name]))
    plain = to_torch(model)
    assert list(plain.state_dict()) == list(model.state_dict())
    assert not reachable(plain, set())
    plain = {"made": lambda: plain, "copied": lambda: copy.deepcopy(plain), "pickled": lambda: pickled(plain)}[how]()
    for _ in range(3):
        x, other = torch.arange(-6.0, 6).view(3, 4), torch.arange(-6.0, 6).view(3, 4)
        assert all(torch.equal(*pair) for pair in zip(flat(plain(x)), flat(model(other)), strict=True))
        assert torch.equal(x, other)


def shifted(self: Any, x: Any, shift: Any = None, scale: float = 2.0) -> Any:
    return self.relu(x if shift is None else x + shift) * scale


def test_optional_arguments_stay_or_are_asserted() -> None:
    x = torch.randn(3, 4)
    model = rewritten(lambda self, x, scale=2.0: self.relu(x) * scale)
    assert torch.equal(to_torch(model)(x, scale=3.0), model(x, scale=3.0))
    model = rewritten(shifted)
    plain = to_torch(model)
    assert torch.equal(plain(x), model(x))
    assert torch.equal(plain(x, shift=None, scale=2.0), model(x))
    with pytest.raises(AssertionError, match="shift has been specialized to have value None"):
        plain(x, x)


def under_no_grad(self: Any, x: Any) -> Any:
    with torch.no_grad():
        x = x * 2
    return self.relu(x)


def under_autocast(self: Any, x: Any) -> Any:
    with torch.autocast("cpu"):
        x = self.linear(x)
    return self.relu(x)


def sets(self: Any, x: Any) -> Any:
    self.count += 1
    return self.relu(x) * self.count


def counts(self: Any, x: Any) -> Any:
    self.steps += 1
    return self.relu(x) * self.steps


def averages(self: Any, x: Any) -> Any:
    self.steps = self.steps * 0.9 + x.mean(0)
    return self.relu(x) * self.steps


NO_GRAPHS: dict[str, tuple[Callable[..., Any], str]] = {
    "values": (
        lambda self, x: self.relu(x) if x.sum() > 0 else x,
        "variables cannot be used as inputs to control",
    ),
    "types": (lambda self, x: self.relu(x if isinstance(x, Tensor) else x[0]), "it asks for the type of an input"),
    "made": (
        lambda self, x: self.relu(x) @ torch.eye(4),
        "it computes with a tensor that is neither an input nor",
    ),
    "random": (lambda self, x: self.relu(x) * torch.rand(1).item(), "it draws random numbers that depend on no input"),
    "python": (lambda self, x: self.relu(x) * random.random(), "it draws random numbers that depend on no input"),
    "numpy": (lambda self, x: self.relu(x) * np.random.rand(), "it draws random numbers that depend on no input"),
    "no_grad": (under_no_grad, "it computes under torch.no_grad or torch.autocast"),
    "autocast": (under_autocast, "it computes under torch.no_grad or torch.autocast"),
    "attribute": (sets, "it sets its attribute count"),
    "buffer": (counts, "it writes to its tensor steps"),
    "tensor": (lambda self, x: self.relu(x) + self.shift.add_(1), "it writes to its tensor shift"),
    "new_buffer": (averages, "it sets its attribute steps"),
    "starred": (lambda self, x, *args: self.relu(self.linear(x, *args)), "Proxy object cannot be iterated"),
    "unregistered": (lambda self, x: nn.ReLU()(self.relu(x)), "it calls a ReLU that is no submodule of it"),
}


@pytest.mark.parametrize("name", NO_GRAPHS)
def test_what_a_graph_would_not_hold_is_refused(name: str) -> None:
    forward, reason = NO_GRAPHS[name]
    model = nn.Sequential(rewritten(forward))
    with pytest.raises(
        ValueError,
        match=rf"the forward of '0' \(tests.surgery.test_to_torch.Block\), which surgery rewrote, cannot .*{reason}"
        r".*; move that part of it into a submodule without activations, or deploy the model with dreluop",
    ):
        to_torch(model)


def test_modes_of_children_that_decide_need_eval() -> None:
    model = rewritten(lambda self, x: functional.dropout(self.relu(x), 0.5, self.drop.training)).train()
    with pytest.raises(ValueError, match="the forward of a Block differs between train and eval mode"):
        to_torch(model)
    model = rewritten(FORWARDS["call_sites"]).train()
    model.linear.eval()
    plain = to_torch(model)
    assert plain.training and plain.drop.training and not plain.linear.training


def pruned(layer: nn.Module) -> nn.Module:
    return prune.l1_unstructured(layer, "weight", 0.3)


@pytest.mark.parametrize("hook", [weight_norm, spectral_norm, pruned])
@pytest.mark.parametrize("called", [False, True])
def test_weights_that_hooks_compute(hook: Any, called: bool) -> None:
    model = nn.Sequential(hook(nn.Conv2d(3, 3, 1)), nn.ReLU(), nn.Flatten(), hook(nn.Linear(3, 3))).eval()
    replace_activations(model, init=0.3)
    insert_stem(model, init=0.5)
    insert_head(model, init=0.5)
    x = torch.randn(4, 3, 1, 1)
    if called:
        model(x).sum().backward()
    plain = to_torch(model)
    copy.deepcopy(plain)
    assert list(plain.state_dict()) == list(model.state_dict())
    assert torch.equal(plain(x), model(x))
    before = copy.deepcopy(model.state_dict())
    for parameter in plain.parameters():
        nn.init.normal_(parameter)
    assert not torch.equal(plain(x), model(x))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_recurrent_layer_whose_weights_a_hook_computes() -> None:
    model = nn.Sequential(nn.Linear(4, 4), DReLU(4), weight_norm(nn.LSTM(4, 4), "weight_hh_l0"))
    x = torch.randn(3, 4)
    model(x)[0].sum().backward()
    assert torch.equal(to_torch(model)(x)[0], model(x)[0])


class Lists(nn.Module):
    """Calls its activations through a list, a dictionary and a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = DReLU(4, init=0.3), DReLU(4, init=0.2), rewritten(sites)
        self.steps = [self.first, {"second": self.second}, (self.third, 1)]

    def forward(self, x: Tensor) -> Any:
        return self.steps[2][0](self.steps[1]["second"](self.steps[0](x)))  # type: ignore[index, operator]


def test_modules_in_lists_and_dictionaries_become_plain() -> None:
    model, x = Lists(), torch.randn(3, 4)
    plain = to_torch(model)
    assert torch.equal(plain(x), model(x))
    assert [plain.steps[0], plain.steps[1]["second"], plain.steps[2][0]] == list(plain.children())
    assert b"dreluop" not in pickle.dumps(plain)


def test_hooks_stay() -> None:
    model, x = nn.Sequential(rewritten(sites), DReLU(4)), torch.randn(3, 4)
    for module in model:
        module.register_forward_hook(lambda module, args, y: y + 1)
        module.register_forward_pre_hook(lambda module, args, kwargs: ((args[0] * 2,), kwargs), with_kwargs=True)
    assert torch.equal(to_torch(model)(x), model(x))


def test_a_model_that_cannot_be_copied() -> None:
    model = nn.Sequential(DReLU(4))
    model.lock = threading.Lock()
    with pytest.raises(ValueError, match=r"model: it cannot be copied: cannot pickle '_thread\.lock' object"):
        to_torch(model)
