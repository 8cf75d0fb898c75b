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
from torch import Tensor, nn
from torch.nn import functional

import dreluop
from dreluop import DReLU
from dreluop.surgery import Report, ResidualDReLU, Site, replace_activations, set_caps
from tests.surgery.models import (
    DataDependent,
    Functional,
    Inner,
    OptionalArgument,
    ResidualBlock,
    SharedBlock,
    TwoModes,
    Users,
)


def open_caps(model: nn.Module, report: Report) -> None:
    set_caps(model, {site.name: math.inf for site in report.replaced if site.bound is None})


def d_relus(model: nn.Module) -> dict[str, DReLU]:
    return {name: module for name, module in model.named_modules() if isinstance(module, DReLU)}


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "residual": (lambda: ResidualBlock(6, 3, True), (2, 6, 5, 5), 3),
    "residual_out_of_place": (lambda: ResidualBlock(6, 3, False), (2, 6, 5, 5), 3),
    "functional": (Functional, (2, 4, 5, 5), 7),
    "shared": (SharedBlock, (2, 5), 3),
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
    assert not report.untraced
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


def weights_of(model: nn.Module) -> list[Tensor]:
    return [parameter for name, parameter in model.named_parameters() if not name.endswith("cap")]


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
    assert "relu_2 = self.relu_2(bn3, x)" in inspect.getsource(type(model).forward)


def test_channel_counts_come_from_the_layers_before() -> None:
    model = Users()
    sites = {site.name: site.cap_shape for site in replace_activations(model).sites}
    assert sites["stem.2"] == (8,)
    assert [sites[f"stages.low.0.relu{end}"] for end in ("", "_1", "_2")] == [(4,), (4,), (8,)]
    assert [sites["stages.low.1.1"], sites["stages.low.1.3"]] == [(6,), (4,)]
    assert sites["classifier.2"] == (10,)


def test_features_come_last_after_a_linear() -> None:
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU())
    replace_activations(model)
    assert model(torch.randn(2, 3, 5)).shape == (2, 3, 7)
    assert model[1].cap.shape == (7,)


@pytest.mark.parametrize("granularity", ["layer", "channel", "neuron"])
def test_granularities_with_an_example(granularity: Any) -> None:
    model = Users().train()
    before = copy.deepcopy(model)
    report = replace_activations(model, granularity=granularity, example_input=torch.randn(1, 3, 6, 6))
    expected = {"layer": (1,), "channel": (8,), "neuron": (8, 6, 6)}[granularity]
    stem = next(site for site in report.sites if site.name == "stem.2")
    assert (stem.cap_shape, stem.shape) == (expected, (1, 8, 6, 6))
    # The run that looked at the shapes left statistics and modes alone.
    for key, value in before.state_dict().items():
        assert torch.equal(model.state_dict()[key], value)
    assert all(module.training for module in model.modules())
    open_caps(model, report)
    x = torch.randn(2, 3, 6, 6)
    assert torch.equal(model(x), before(x))


def test_both_modes_behave_as_before_from_either() -> None:
    for training in (True, False):
        original = TwoModes().train(training)
        model = copy.deepcopy(original)
        report = replace_activations(model)
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


class Sums(nn.Module):
    """Sums that may and may not be fused."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.a, self.b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.shift = nn.Parameter(torch.ones(4, 1, 1))
        self.drop = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:  # noqa: PLR0911 (a case each)
        a, b = self.a(x), self.b(x)
        if self.kind == "add":
            return functional.relu(a + b, inplace=True)
        if self.kind == "addend_used_later":
            return functional.relu(a + b, inplace=True) * a
        if self.kind == "torch_add":
            return torch.relu(torch.add(a, b))
        if self.kind == "method":
            return a.add(b).relu()
        if self.kind == "in_place":
            a += b
            return functional.relu(a)
        if self.kind == "used_twice":
            total = a + b
            return functional.relu(total) + total
        if self.kind == "alpha":
            return functional.relu(torch.add(a, b, alpha=2))
        if self.kind == "number":
            return functional.relu(a + 1)
        if self.kind == "parameter":
            return functional.relu(a + self.shift)
        if self.kind == "between":
            total = a + b
            b.mul_(2)
            return functional.relu(total) * b
        if self.kind == "input":
            x += a
            return functional.relu(x)
        if self.kind == "aliased":
            same = self.drop(a)
            same += b
            return functional.relu(same) * a
        assert self.kind == "broadcast"
        return functional.relu(a + b.mean((2, 3), keepdim=True))


SUMS = {
    "add": "", "addend_used_later": "",
    "torch_add": "", "method": "", "in_place": "", "broadcast": "", "alpha": None, "number": None,
    "used_twice": "the sum has another user", "parameter": "an addend is a parameter or buffer",
    "between": "other operations run between the sum and the activation",
    "input": "the sum is written over a tensor that may be seen elsewhere",
    "aliased": "the sum is written over a tensor that may be seen elsewhere",
}  # fmt: skip


@pytest.mark.parametrize("kind", SUMS)
def test_fusing_sums(kind: str) -> None:
    original = Sums(kind)
    model = copy.deepcopy(original)
    # What comes in does not tell the channels of x += a.
    report = replace_activations(model, example_input=torch.randn(2, 4, 3, 3))
    (site,) = report.sites
    reason = SUMS[kind]
    assert site.action == ("fused" if reason == "" else "replaced")
    assert site.reason == (f"not fused: {reason}" if reason else "")
    assert isinstance(d_relus(model)[site.name], ResidualDReLU) == (reason == "")
    open_caps(model, report)
    x = torch.randn(2, 4, 3, 3)
    mine, theirs = x.clone(), x.clone()
    assert torch.equal(model(mine), original(theirs))
    assert torch.equal(mine, theirs)
    assert (kind == "input") != torch.equal(mine, x)


def test_fused_caps_and_gradients_are_those_of_the_sum() -> None:
    fused = ResidualBlock(6, 3, True).double()
    apart = copy.deepcopy(fused)
    assert [len(replace_activations(m, init=0.3, fuse=f).fused) for m, f in ((fused, True), (apart, False))] == [1, 0]
    x = torch.randn(2, 6, 5, 5, dtype=torch.float64)
    fused(x).square().sum().backward(), apart(x).square().sum().backward()
    for (name, one), other in zip(fused.named_parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=name)
    assert fused.relu_2.cap.dtype is torch.float64
    assert fused.relu_2.cap.grad.abs().sum() > 0


def test_a_block_called_often_has_a_cap_per_call_and_still_one_weight() -> None:
    model = SharedBlock()
    report = replace_activations(model)
    assert [site.name for site in report.sites] == ["block.act", "act", "act_1"]
    assert len(weights_of(model)) == 2
    set_caps(model, {"block.act": 3.0, "act": 2.0, "act_1": 1e-3})
    assert model(torch.randn(20, 5)).max() <= 1e-3


def test_a_sequence_that_repeats_a_block_says_that_calls_share() -> None:
    block = Inner()
    report = replace_activations(nn.Sequential(block, block))
    (site,) = report.sites
    assert site.reason == "0 (Inner) is called 2 times in a forward pass, with the same caps"


def test_what_cannot_be_traced_is_replaced_by_module_and_told() -> None:
    model = DataDependent()
    report = replace_activations(model, granularity="layer")
    assert list(d_relus(model)) == ["inner.act", "act"]
    assert "symbolically traced variables cannot be used as inputs to control flow" in report.untraced[""]
    reasons = {site.name: site.reason for site in report.sites}
    assert reasons == {
        "act": "replaced as a module, all its calls share the caps: the model was not traced", "inner.act": "",
    }  # fmt: skip
    assert "not traced: (model): TraceError" in str(report)
    assert model(torch.randn(3, 5)).shape == (3, 5)


class FreshTensor(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x) + torch.ones(3)


def test_a_forward_that_a_trace_would_freeze_is_left() -> None:
    report = replace_activations(nn.Sequential(nn.Linear(3, 3), FreshTensor()))
    (site,) = report.sites
    assert site.action == "left"
    assert "makes a tensor that depends on no input" in site.reason
    assert "makes a tensor that depends on no input" in report.untraced["1"]


def test_torch_layers_that_hide_a_relu_are_told() -> None:
    report = replace_activations(nn.Sequential(nn.TransformerEncoderLayer(8, 2), nn.RNN(8, 8, nonlinearity="relu")))
    assert not report.sites
    assert report.untraced == {
        "0": "torch.nn.TransformerEncoderLayer computes its ReLU inside",
        "1": "torch.nn.RNN computes its ReLU inside",
    }


def test_graphs_and_scripts_are_told() -> None:
    graph = torch.fx.symbolic_trace(ResidualBlock(6, 3, False))
    scripted = torch.jit.trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.ones(2, 4))
    holder = nn.Sequential(graph, scripted, torch.fx.symbolic_trace(Functional()))
    report = replace_activations(holder, granularity="layer")
    assert report.untraced["0"] == "its forward is a torch.fx graph; apply surgery to the module before it is traced"
    assert report.untraced["1"] == "a TorchScript module cannot be looked into"
    actions = [(site.name, site.action) for site in report.sites]
    assert actions[:3] == [("0.relu", "replaced")] * 3
    assert {action for _, action in actions[3:]} == {"left"}
    assert len(d_relus(holder)) == 1
    assert graph(torch.randn(2, 6, 5, 5)).min() >= 0


class NumbersInPlace(nn.Module):
    """A number that is used under its old name after ``+=``."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        rows = old = x.shape[0]
        rows += 5
        y = self.linear(x)
        y *= 2
        return functional.relu(y) * old + rows


def test_in_place_operators_mean_what_they_meant() -> None:
    original = NumbersInPlace()
    model = copy.deepcopy(original)
    open_caps(model, replace_activations(model))
    x = torch.randn(3, 4)
    for other in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), original(x))


def test_an_optional_argument_is_taken_at_its_default_and_another_refused() -> None:
    model = OptionalArgument()
    replace_activations(model)
    x = torch.randn(2, 5)
    model(x)
    with pytest.raises(ValueError, match=r"shift: got Tensor; this forward was rewritten .* for its default, None"):
        model(x, torch.ones(5))


class Caller(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.module(x, x)
        return result


def test_an_optional_argument_that_the_model_passes_stays() -> None:
    original = Caller(OptionalArgument())
    model = copy.deepcopy(original)
    open_caps(model, replace_activations(model))
    x = torch.randn(4, 5)
    assert torch.equal(model(x), original(x))


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


def test_a_model_without_relu_gives_an_empty_report() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.GELU())
    report = replace_activations(model)
    assert report == Report(())
    assert str(report) == "0 of 0 sites replaced, 0 of them fused with a sum"


def test_hooks_stay_and_their_handles_work() -> None:
    model = Users()
    seen: list[str] = []
    model.stages["low"][0].register_forward_hook(lambda *_: seen.append("block"))
    handle = model.stem[2].register_forward_hook(lambda *_: seen.append("stem"))
    replace_activations(model)
    model(torch.randn(2, 3, 6, 6))
    assert sorted(set(seen)) == ["block", "stem"]
    handle.remove()
    seen.clear()
    model(torch.randn(2, 3, 6, 6))
    assert seen.count("block") == 1
    assert not model.stem[2]._forward_hooks


def test_activations_do_not_share_hooks() -> None:
    model = ResidualBlock(6, 3, True)
    replace_activations(model)
    model.relu.register_forward_hook(lambda *_: None)
    assert not model.relu_1._forward_hooks


def test_a_second_surgery_finds_nothing() -> None:
    model = Users()
    replace_activations(model)
    assert replace_activations(model) == Report(())


def test_data_parallel_wrapping() -> None:
    original = Users()
    model = nn.DataParallel(copy.deepcopy(original))
    report = replace_activations(model)
    assert all(site.name.startswith("module.") for site in report.sites)
    open_caps(model, report)
    x = torch.randn(2, 3, 6, 6)
    assert torch.equal(model(x), original(x))
    replica = model.module._replicate_for_data_parallel()
    assert type(replica) is type(model.module)


def test_distributed_wrapping_is_refused() -> None:
    distributed = torch.distributed
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        model = nn.Sequential(nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(3, 3), nn.ReLU())))
    finally:
        distributed.destroy_process_group()
    with pytest.raises(ValueError, match="model: got one inside DistributedDataParallel, which would not synchronise"):
        replace_activations(model)


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


def test_autocast_where_the_two_addends_differ() -> None:
    model = ResidualBlock(6, 3, False)
    replace_activations(model, init=0.5)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(torch.randn(2, 6, 5, 5)).max() <= 0.5


def test_report_as_text() -> None:
    report = replace_activations(ResidualBlock(6, 3, True))
    lines = str(report).splitlines()
    assert lines[0].split() == ["site", "was", "in", "mode", "input", "caps", "done", "note"]
    assert " ".join(lines[3].split()) == "relu_2 module relu, call 3 of 3 (model) (ResidualBlock) both - 6 fused"
    assert lines[-1] == "3 of 3 sites replaced, 1 of them fused with a sum"
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
    "neuron": (Users, {"granularity": "neuron"}, ValueError, "example_input: neuron caps need the shape of what comes"),
    "channels": (_unknown_channels, {}, ValueError, "the layer before '1' does not tell how many channels it gets"),
    "example": (
        Users, {"example_input": torch.ones(1, 2, 6, 6)}, ValueError,
        "example_input: the model cannot run on it in eval mode: .*channels",
    ),
    "vector": (
        lambda: nn.Sequential(nn.Identity(), nn.ReLU()), {"granularity": "neuron", "example_input": torch.ones(3)},
        ValueError, r"granularity: '1' gets shape \(3,\); neuron caps need a batch dimension first",
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
