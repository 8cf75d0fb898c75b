"""remove_caps: plain ReLUs in place of capped modules, the parameters the model's own, the model untouched."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import dreluop
from dreluop.adaptive import UncappedReLU, measure_std, remove_caps, surrogate_backward
from dreluop.surgery import replace_activations
from dreluop.surgery.sites import ResidualDReLU
from tests.support import oracle
from tests.support.optional import torchvision_or_skip


class Residual(nn.Module):
    """Every place where a module can be: a child, shared, a list, a dict, a plain attribute, a bound method."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = dreluop.DReLU(4, init=0.1)
        self.again = self.shared
        self.layers = nn.ModuleList([nn.Conv2d(4, 4, 3, padding=1), dreluop.DReLU(init=0.1, inplace=True)])
        self.norm = nn.BatchNorm2d(4)
        self.bias = nn.Parameter(torch.randn(4))
        self.unregistered = [dreluop.SReLU(0.1), {"neuron": (dreluop.DReLU((4, 5, 5), init=0.1),)}]
        object.__setattr__(self, "hidden", dreluop.SReLU(0.2, save="mask"))
        self.bound = self.last

    def last(self, x: Tensor) -> Tensor:
        return self.hidden(x)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(x, x.detach() * 0.5, bias=self.bias)
        x = self.norm(self.layers[1](self.layers[0](x)))
        x = self.unregistered[0](x) + self.unregistered[1]["neuron"][0](x, residual=x)
        return self.bound(self.again(x))

    def by_hand(self, x: Tensor) -> Tensor:
        x = torch.relu(x + self.bias.view(4, 1, 1) + x * 0.5)
        x = self.norm(torch.relu(self.layers[0](x)))
        x = torch.relu(x) + torch.relu(x + x)
        return torch.relu(torch.relu(x))


def snapshot(model: nn.Module) -> dict[str, Any]:
    return {
        "tensors": {name: t.clone() for name, t in model.state_dict().items()},
        "modes": [m.training for m in model.modules()],
        "classes": [type(m) for m in model.modules()],
        "names": [name for name, _ in model.named_modules()],
        "text": repr(model),
    }


def assert_unchanged(model: nn.Module, before: dict[str, Any]) -> None:
    after = snapshot(model)
    for name, t in before.pop("tensors").items():
        oracle.assert_same_bits(after["tensors"][name], t)
    after.pop("tensors")
    assert after == before


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_every_capped_module_is_a_relu(training: bool) -> None:
    model = Residual().train(training)
    before = snapshot(model)
    x = torch.randn(3, 4, 5, 5)
    view = remove_caps(model)
    assert isinstance(view, Residual)
    assert not any(isinstance(m, dreluop.DReLU | dreluop.SReLU) for m in view.modules())
    assert view.training is training
    expected = copy.deepcopy(model).by_hand(x)
    torch.testing.assert_close(view(x), expected)
    assert not torch.equal(view(x), copy.deepcopy(model)(x))
    assert view.shared is view.again
    assert_unchanged(model, before)


def test_the_view_does_not_touch_the_model() -> None:
    model = Residual().eval()
    before = snapshot(model)
    calls: list[nn.Module] = []
    view = remove_caps(model)
    view.train()
    view.register_forward_hook(lambda module, *_: calls.append(module))
    view.shared.register_forward_hook(lambda module, *_: calls.append(module))
    view(torch.randn(8, 4, 5, 5))
    assert len(calls) == 3
    view.added = nn.Linear(2, 2)
    view.layers.append(nn.Identity())
    model(torch.randn(8, 4, 5, 5))
    assert len(calls) == 3
    assert not hasattr(model, "added")
    assert_unchanged(model, before)
    # In train mode the statistics of the view have moved, those of the model have not.
    assert not torch.equal(view.norm.running_mean, model.norm.running_mean)


def test_parameters_are_shared_and_caps_are_gone() -> None:
    model = Residual()
    view = remove_caps(model)
    mine, caps = dict(model.named_parameters()), ("shared.cap", "layers.1.cap")
    assert set(mine) - set(dict(view.named_parameters())) == set(caps)
    for name, parameter in view.named_parameters():
        assert parameter is mine[name]
    # It follows the model's training.
    x = torch.randn(2, 4, 5, 5)
    view.eval()
    first = view(x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model(x).sum().backward()
    optimizer.step()
    assert not torch.equal(view(x), first)


def test_a_model_of_one_module_and_its_mode() -> None:
    module = dreluop.DReLU(3, init=0.1, inplace=True).eval()
    view = remove_caps(module)
    assert isinstance(view, UncappedReLU)
    assert not view.training
    assert repr(view) == "UncappedReLU(inplace=True)"
    x = torch.randn(4, 3)
    expected = x.relu()
    assert view(x) is x
    assert torch.equal(x, expected)
    assert isinstance(module, dreluop.DReLU)
    assert module.cap.tolist() == pytest.approx([0.1] * 3)


@pytest.mark.parametrize("inplace", [False, True], ids=["", "inplace"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cap_shape", [1, 3, (3, 4)], ids=["layer", "channel", "neuron"])
def test_calls_with_bias_and_residual_are_those_of_a_cap_that_is_never_met(
    cap_shape: Any, dtype: torch.dtype, inplace: bool
) -> None:
    module = dreluop.DReLU(cap_shape, init=1e4, inplace=inplace)
    view = remove_caps(module)
    x, residual = torch.randn(5, 3, 4).to(dtype), torch.randn(5, 3, 4).to(dtype)
    bias = torch.randn(cap_shape if cap_shape == (3, 4) else 3)
    calls: list[Callable[[nn.Module, Tensor], Tensor]] = [
        lambda m, t: m(t),
        lambda m, t: m(t, residual),
        lambda m, t: m(t, residual=residual),
        lambda m, t: m(t, bias=bias),
        lambda m, t: m(t, residual, bias=bias),
    ]
    for call in calls:
        one, other = x.clone(), x.clone()
        got, expected = call(view, one), call(module, other)
        assert torch.equal(got, expected)
        assert torch.equal(one, other)
        assert (got is one) is inplace


def test_a_site_of_the_surgery_takes_a_bias_beside_its_residual() -> None:
    module = ResidualDReLU(3, init=1e4)
    x, residual, bias = torch.randn(5, 3, 4), torch.randn(5, 3, 4), torch.randn(3)
    expected = module(x, residual, bias=bias)
    assert torch.equal(remove_caps(module)(x, residual, bias=bias), expected)


def test_hooks_of_replaced_modules_are_taken_over() -> None:
    model = nn.Sequential(nn.Linear(3, 3), dreluop.DReLU(3))
    seen: list[Tensor] = []
    model[1].register_forward_hook(lambda module, inputs, y: seen.append(y))
    view = remove_caps(model)
    y = view(torch.randn(2, 3))
    assert len(seen) == 1
    assert seen[0] is y


@pytest.mark.parametrize(
    "compute",
    [
        lambda cap: prune.identity(cap, "cap"),
        lambda cap: prune.custom_from_mask(prune.identity(cap, "cap"), "cap", torch.ones(4)),
        lambda cap: parametrize.register_parametrization(cap, "cap", nn.Softplus()),
    ],
    ids=["pruned", "pruned twice", "parametrized"],
)
def test_caps_that_a_hook_or_a_parametrization_computes(compute: Callable[[nn.Module], Any]) -> None:
    calls: list[str] = []
    capped = dreluop.DReLU(4, init=0.1)
    capped.register_forward_pre_hook(lambda module, inputs: calls.append("hook"))
    compute(capped)
    model = nn.Sequential(prune.identity(nn.Linear(4, 4), "weight"), capped)
    x = torch.randn(3, 4)
    expected = model[0](x).relu()
    before = model(x)
    calls.clear()
    torch.testing.assert_close(remove_caps(model)(x), expected, rtol=0, atol=0)
    assert calls == ["hook"]
    assert torch.equal(model(x), before)


def test_tied_weights_stay_tied() -> None:
    model = nn.Sequential(nn.Linear(3, 3), dreluop.SReLU(1.0), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    view = remove_caps(model)
    assert view[0].weight is view[2].weight is model[0].weight
    parametrized = torch.nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))
    old = torch.nn.utils.weight_norm(nn.Linear(3, 3))
    model = nn.Sequential(parametrized, dreluop.SReLU(1e4), old, dreluop.SReLU(1e4))
    view = remove_caps(model)
    x = torch.randn(2, 3)
    torch.testing.assert_close(view(x), model(x))
    assert {id(p) for p in view.parameters()} == {id(p) for p in model.parameters()}


@pytest.mark.slow
def test_traced_and_compiled_models() -> None:
    model = nn.Sequential(nn.Linear(3, 3), dreluop.DReLU(3, init=0.1), nn.Linear(3, 3), nn.ReLU())
    x = torch.randn(4, 3)
    expected = model[3](model[2](torch.relu(model[0](x))))

    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, m: nn.Module, name: str) -> bool:
            return isinstance(m, dreluop.DReLU) or super().is_leaf_module(m, name)

    traced = torch.fx.GraphModule(model, Tracer().trace(model))
    torch.testing.assert_close(remove_caps(traced)(x), expected)
    torch.testing.assert_close(traced(x), model(x))
    compiled = torch.compile(model, backend="eager")
    compiled(x)
    torch.testing.assert_close(remove_caps(compiled)(x), expected)
    torch.testing.assert_close(torch.compile(remove_caps(model), backend="eager", fullgraph=True)(x), expected)
    torch.testing.assert_close(remove_caps(nn.DataParallel(model))(x), expected)


def test_views_in_attacks() -> None:
    model = nn.Sequential(nn.Linear(3, 8), dreluop.DReLU(8, init=1e-4), nn.Linear(8, 2))
    view = remove_caps(model)
    x = torch.randn(16, 3, requires_grad=True)
    assert not torch.autograd.grad(model(x).sum(), x)[0].any()
    gradient = torch.autograd.grad(view(x).sum(), x)[0]
    assert gradient.any(1).all()
    # Nothing is capped in it, so a surrogate changes nothing.
    with surrogate_backward("soft"):
        oracle.assert_same_bits(torch.autograd.grad(view(x).sum(), x)[0], gradient)
    with pytest.raises(ValueError, match="called no capped activation"):
        measure_std(view, x)


def test_views_can_be_copied_and_saved() -> None:
    model = Residual()
    view = remove_caps(model)
    other = copy.deepcopy(view)
    other.load_state_dict(view.state_dict())
    x = torch.randn(2, 4, 5, 5)
    oracle.assert_same_bits(other.eval()(x), view.eval()(x))
    assert other.bias is not view.bias


class Doubled(dreluop.DReLU):
    def forward(self, x: Tensor, residual: Tensor | None = None, *, bias: Tensor | None = None) -> Tensor:
        return 2 * super().forward(x, residual, bias=bias)


class Named(dreluop.DReLU):
    """A subclass that changes nothing of the forward."""


def test_subclasses() -> None:
    assert isinstance(remove_caps(Named(3)), UncappedReLU)
    with pytest.raises(TypeError, match="a Doubled has a forward of its own"):
        remove_caps(nn.Sequential(Doubled(3)))


def test_what_it_cannot_do_it_refuses() -> None:
    with pytest.raises(TypeError, match=r"model: got builtin_function_or_method; expected a torch\.nn\.Module"):
        remove_caps(print)
    for model in (nn.Sequential(nn.Linear(3, 3), nn.ReLU()), remove_caps(dreluop.DReLU())):
        with pytest.raises(ValueError, match="without any DReLU or SReLU; expected at least one"):
            remove_caps(model)
    lazy = nn.Sequential(nn.Linear(3, 3), dreluop.LazyDReLU("channel"))
    with pytest.raises(ValueError, match="no shape yet; run the model once before"):
        remove_caps(lazy)
    lazy(torch.randn(2, 3))
    x = torch.randn(2, 3)
    torch.testing.assert_close(remove_caps(lazy)(x), torch.relu(lazy[0](x)))


class Block(nn.Module):
    """A residual block; in place where `inplace`."""

    def __init__(self, inplace: bool, channels: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1)
        self.norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace)
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.norm(self.conv(x)))
        # The block's input is needed again: a stand-in that wrote over it would show.
        if self.inplace:
            out = self.conv(out)
            out += x
            return self.relu(out) + x
        return self.relu(self.conv(out) + x) + x


class Broadcast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x) + x.mean((2, 3), keepdim=True))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    "make", [lambda: Block(False), lambda: Block(True), Broadcast], ids=["block", "in_place", "sum"]
)
def test_fused_sites_of_the_surgery(make: Callable[[], nn.Module], training: bool) -> None:
    original = nn.Sequential(nn.Conv2d(3, 4, 1), make(), make()).train(training)
    model = copy.deepcopy(original)
    replace_activations(model, fuse=True)
    assert any(isinstance(module, ResidualDReLU) for module in model.modules())
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, dreluop.DReLU):
                module.cap.fill_(0.1)
    view = remove_caps(model)
    x = torch.randn(2, 3, 5, 5)
    kept = x.clone()
    got, expected = view(x), original(x)
    assert torch.equal(x, kept)
    torch.testing.assert_close(got, expected)
    assert not torch.allclose(model(x), expected)
    assert all(a is b for a, b in zip(view[0].parameters(), model[0].parameters(), strict=True))
    got.sum().backward()
    assert all(p.grad is not None for p in view.parameters())


@pytest.mark.slow
def test_a_residual_network_of_torchvision() -> None:
    models = torchvision_or_skip().models
    original = models.resnet18(weights=None).eval()
    model = copy.deepcopy(original)
    replace_activations(model)
    for module in model.modules():
        if isinstance(module, dreluop.DReLU):
            nn.init.constant_(module.cap, 0.1)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(remove_caps(model)(x), original(x))
