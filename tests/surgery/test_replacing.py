"""replace_activations on networks of one's own: every call, both modes, copies, compilers, and what is refused."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import dreluop
from dreluop.surgery import Report, Site, replace_activations, set_caps
from tests.surgery.helpers import d_relus, open_caps, weights_of
from tests.surgery.models import (
    Functional,
    OptionalArgument,
    ResidualBlock,
    SharedBlock,
    TwoModes,
    Users,
)

MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "residual": (lambda: ResidualBlock(6, 3, True), (2, 6, 5, 5), 3),
    "residual_out_of_place": (lambda: ResidualBlock(6, 3, False), (2, 6, 5, 5), 3),
    "functional": (Functional, (2, 4, 5, 5), 7),
    "shared": (SharedBlock, (2, 5), 1),
    "users": (Users, (2, 3, 6, 6), 14),
    "optional": (OptionalArgument, (2, 5), 1),
}


@pytest.mark.parametrize("fuse", [True, False], ids=["fused", "unfused"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", MODELS)
def test_with_open_caps_the_model_is_the_original(name: str, training: bool, fuse: bool) -> None:
    make, shape, sites = MODELS[name]
    original = make().train(training)
    model = copy.deepcopy(original)
    report = replace_activations(model, fuse=fuse)
    assert len(report.sites) == len(report.replaced) == len(d_relus(model)) == sites
    assert not report.remaining
    open_caps(model, report)
    x = torch.randn(shape)
    want, got = original(x), model(x)
    assert torch.equal(got, want)
    want.sum().backward()
    got.sum().backward()
    for (key, parameter), other in zip(original.named_parameters(), weights_of(model), strict=True):
        torch.testing.assert_close(other.grad, parameter.grad, rtol=1e-5, atol=1e-6, msg=key)
    for key, buffer in original.named_buffers():
        assert torch.equal(dict(model.named_buffers())[key], buffer)


def test_caps_act_and_learn() -> None:
    model = Users()
    report = replace_activations(model, init=0.5)
    layers = d_relus(model)
    assert [layers[site.name].init for site in report.sites] == [site.bound or 0.5 for site in report.sites]
    assert {site.bound for site in report.sites} == {None, 6.0, 0.25, 2.0}
    block = model.stages["low"][0]
    y = block(torch.randn(2, 8, 6, 6) * 5)
    assert y.max() == 0.5
    y.sum().backward()
    assert all(layer.cap.grad.abs().sum() > 0 for layer in d_relus(block).values())


def test_names_of_the_original_stay_and_caps_come_in() -> None:
    model = Users()
    before = copy.deepcopy(model.state_dict())
    report = replace_activations(model)
    after = model.state_dict()
    added = [name for name in after if name not in before]
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert sorted(added) == sorted(f"{site.name}.cap" for site in report.sites)
    assert added[:3] == ["stem.2.cap", "stages.low.0.relu.cap", "stages.low.0.relu_1.cap"]


def test_repr_and_source_are_readable() -> None:
    model = ResidualBlock(6, 3, True)
    replace_activations(model)
    text = repr(model)
    assert text.startswith("ResidualBlock(")
    assert "(relu): DReLU(3, init=100, dim=1, inplace=True)" in text
    assert "(relu_2): ResidualDReLU(6, init=100, dim=1, inplace=True)" in text
    assert isinstance(model, ResidualBlock)
    source = inspect.getsource(type(model).forward)
    assert "out = call_site(self.relu_1, self.relu, self.conv2(out))" in source
    assert "return call_site_of_sum(self.relu_2, self.relu, out, x)" in source


def test_both_modes_behave_as_before_from_either() -> None:
    for training in (True, False):
        original = TwoModes().train(training)
        model = copy.deepcopy(original)
        report = replace_activations(model, example_input=torch.randn(9, 6))
        assert [(site.name, site.modes) for site in report.sites] == [
            ("relu", "both"), ("relu_1", "train"), ("relu_2", "both"),
        ]  # fmt: skip
        open_caps(model, report)
        x = torch.randn(9, 6)
        for mode in (True, False, True):
            original.train(mode), model.train(mode)
            torch.manual_seed(3)
            want = original(x)
            torch.manual_seed(3)
            got = model(x)
            assert type(got) is type(want)
            for one, other in zip(got, want, strict=True):
                assert torch.equal(one, other)


def test_a_call_has_one_cap_in_both_modes() -> None:
    # The main head's call is the third in training and the second in eval mode.
    model = TwoModes()
    replace_activations(model)
    set_caps(model, {"relu": math.inf, "relu_1": math.inf, "relu_2": 0.01})
    x = torch.randn(50, 6)
    assert model.train()(x)[0].max() <= 0.01 < model(x)[1].max()
    assert model.eval()(x).max() <= 0.01


def test_in_place_calls_stay_in_place() -> None:
    model = Functional()
    report = replace_activations(model)
    assert [site.inplace for site in report.sites] == [False, True, False, False, True, False, False]
    assert [d_relus(model)[site.name].inplace for site in report.sites] == [site.inplace for site in report.sites]
    sources = [site.source for site in report.sites]
    assert sources == ["F.relu", "F.relu", "torch.relu", "Tensor.relu", "Tensor.relu_", "F.relu6", "F.hardtanh"]


def test_a_model_without_relu_gives_an_empty_report() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.GELU())
    report = replace_activations(model)
    assert report == Report(())
    assert str(report).startswith("0 of 0 sites replaced, 0 of them fused with a sum\nnot verified")


def test_a_second_surgery_finds_nothing() -> None:
    model = Users()
    replace_activations(model)
    assert replace_activations(model) == Report(())


def test_copies_and_pickles_compute_the_same_and_are_apart() -> None:
    model = nn.Sequential(Users(), TwoModes().eval())
    model[0].classifier[3] = nn.Linear(10, 6)
    replace_activations(model, init=0.4)
    x = torch.randn(2, 3, 6, 6)
    model.eval()
    want = model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), want)
        assert type(other[1]).__name__ == "TwoModes"
        assert isinstance(other[1], TwoModes)
        assert isinstance(other.train()[1](torch.ones(2, 6)), tuple)
        set_caps(other, 1e-3)
    assert torch.equal(model(x), want)
    fresh = nn.Sequential(Users(), TwoModes())
    fresh[0].classifier[3] = nn.Linear(10, 6)
    replace_activations(fresh)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh.eval()(x), want)


def test_compile_and_export() -> None:
    model = Users().eval()
    replace_activations(model, init=0.4)
    x = torch.randn(2, 3, 6, 6)
    want = model(x)
    torch.compiler.reset()
    assert torch.equal(torch.compile(model, fullgraph=True, backend="aot_eager")(x), want)
    assert torch.equal(torch.export.export(model, (x,)).module()(x), want)
    model.train()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    compiled(x).sum().backward()
    assert all(layer.cap.grad is not None for layer in d_relus(model).values())
    torch.compiler.reset()


def test_trains() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), ResidualBlock(6, 3, True), nn.Flatten(), nn.Linear(54, 5))
    replace_activations(model, init=1.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    x, label = torch.randn(16, 3, 3, 3), torch.randint(5, (16,))
    losses = []
    for _ in range(15):
        loss = functional.cross_entropy(model(x), label) + dreluop.cap_penalty(model, 1e-4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_dtype_and_device_are_the_layers() -> None:
    model = Users().to(torch.bfloat16).to("meta")
    replace_activations(model)
    assert {(layer.cap.dtype, layer.cap.device.type) for layer in d_relus(model).values()} == {(torch.bfloat16, "meta")}


def test_report_as_text() -> None:
    report = replace_activations(ResidualBlock(6, 3, True))
    lines = str(report).splitlines()
    assert lines[0].split() == ["site", "was", "in", "mode", "input", "caps", "done", "note"]
    assert " ".join(lines[3].split()) == "relu_2 module relu, call 3 of 3 (model) (ResidualBlock) - - 6 fused"
    assert lines[-2] == "3 of 3 sites replaced, 1 of them fused with a sum"
    assert lines[-1] == "not verified: pass example_input=, or call report.verify(model, input)"
    assert isinstance(report.sites[0], Site)


def _unknown_channels() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.ReLU())


BAD: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], type[Exception], str]] = {
    "model": (lambda: 3, {}, TypeError, "model: got int; expected a torch.nn.Module"),  # type: ignore[dict-item, return-value]
    "activation": (nn.ReLU, {}, ValueError, "model: got a ReLU, which has no attribute to hold another; use a DReLU"),
    "granularity": (Users, {"granularity": "pixel"}, ValueError, "granularity: got 'pixel'; expected \"layer\""),
    "init": (Users, {"init": 0.0}, ValueError, "init: got 0.0; expected a finite number > 0"),
    "init_type": (Users, {"init": "1"}, TypeError, "init: got str; expected a number"),
    "fuse": (Users, {"fuse": 1}, TypeError, "fuse: got int; expected a bool"),
    "select": (Users, {"select": "nothing*"}, ValueError, "select: 'nothing\\*' matches none of the 14 sites, such as"),
    "select_type": (Users, {"select": 3}, TypeError, "select: got int; expected a function of a Site, a pattern"),
    "neuron": (
        Users, {"granularity": "neuron"}, ValueError,
        "example_input: the layer before does not tell how many neurons these sites get: 'stem.2', 'stages.low",
    ),
    "channels": (
        _unknown_channels, {}, ValueError, "the layer before does not tell how many channels these sites get: '1'; pass"
    ),
    "example": (
        Users, {"example_input": torch.ones(1, 2, 6, 6)}, ValueError,
        "example_input: the model cannot run on it in eval mode: .*channels",
    ),
    "dim_type": (Users, {"dim": "last"}, TypeError, "dim: got str; expected an int"),
    "ambiguous": (
        lambda: nn.Sequential(nn.Identity(), nn.ReLU(), nn.Identity(), nn.ReLU()),
        {"example_input": torch.ones(1, 2, 6)}, ValueError,
        r"dim: the channels of these sites may lie in any dimension, .*: '1' \(1, 2, 6\), '3' \(1, 2, 6\); pass dim=1",
    ),
    "compiled": (lambda: torch.compile(Users()), {}, ValueError, "model: got a compiled module"),  # type: ignore[dict-item, return-value]
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_argument_changes_nothing(name: str) -> None:
    make, options, error, message = BAD[name]
    model = make()
    before = repr(model), [type(m) for m in model.modules()] if isinstance(model, nn.Module) else None
    with pytest.raises(error, match=message):
        replace_activations(model, **options)
    assert before == (repr(model), [type(m) for m in model.modules()] if isinstance(model, nn.Module) else None)
