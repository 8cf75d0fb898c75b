"""``protect`` bounds what clean data does not reach: nothing changes on it; faults are dropped, counted and named."""

from __future__ import annotations

import copy
import math
import pickle
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from dreluop import BatchNormDReLU2d, DReLU, SReLU
from dreluop.faults import bit_flips, protect_weights
from dreluop.surgery import RangeGuard, guarded_elements, protect

X = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    """A residual sum, an activation in place, and one that is called as a function."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.conv2, self.norm2 = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.relu(self.norm(self.conv(x)))))
        return self.relu(y + x)


def network() -> nn.Sequential:
    torch.manual_seed(2)
    stem = [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), Block()]
    model = nn.Sequential(*stem, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 3))
    model(X)
    return model.eval()


def guards_of(model: nn.Module, loader: Any = None, **options: Any) -> dict[str, str]:
    protection = protect(model, [X] if loader is None else loader, progress=False, **options)
    return {one.name: one.kind for one in protection.guards}


def test_clean_data_gives_the_same_outputs_and_old_keys_stay():
    model = network()
    before, keys = model(X), model.state_dict()
    found = guards_of(model)
    # Not the layers whose outputs go straight, or past a batch norm, into an activation, as its residual too.
    assert found == {"2": "cap", "3.relu": "cap", "3.relu_1": "cap", "7": "output range", "8": "output range"}
    assert torch.equal(model(X), before)
    after = model.state_dict()
    assert keys.keys() < after.keys() and all(torch.equal(after[key], value) for key, value in keys.items())
    assert not any(name.endswith("cap") for name, _ in model.named_parameters())
    assert isinstance(model[2], DReLU) and (model[2].above, model[2].nan) == ("zero", "zero")


@pytest.mark.parametrize("value", [1e30, math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("layer", ["0.weight", "3.conv2.bias", "6.weight", "8.bias"])
def test_a_huge_weight_cannot_reach_the_output(layer: str, value: float):
    model = network()
    protect(model, [X], progress=False)
    clean = model(X)
    with torch.no_grad():
        model.get_parameter(layer).view(-1)[0] = value
    hit = model(X)
    # Comparisons with NaN are false.
    # Within the margin.
    assert hit.abs().max() <= 1.2 * clean.abs().max()


def test_forms():
    model = network()
    protect(model, [X], progress=False, above="cap", nan="propagate")
    assert (model[2].above, model[2].nan) == ("cap", "propagate")
    guard = model[8].range_guard
    with torch.no_grad():
        model[8].bias[0] = 1e30
        model[8].bias[1] = math.nan
    y = model(X)
    assert (y[:, 0] == guard.high).all() and y[:, 1].isnan().all()


@pytest.mark.parametrize("above", ["zero", "cap"])
@pytest.mark.parametrize("nan", ["zero", "propagate"])
def test_range_guard(above: Any, nan: Any):
    guard = RangeGuard(torch.tensor(-1.0), torch.tensor(2.0), above, nan)
    x = torch.tensor([-math.inf, -1.5, -1.0, -0.0, 1.9, 2.0, 2.1, math.inf, math.nan])
    low, high = (0.0, 0.0) if above == "zero" else (-1.0, 2.0)
    want = [low, low, -1.0, -0.0, 1.9, 2.0, high, high, 0.0 if nan == "zero" else math.nan]
    torch.testing.assert_close(guard(x), torch.tensor(want), equal_nan=True, rtol=0, atol=0)
    outside = [True, True, False, False, False, False, True, True, nan == "zero"]
    assert guard.outside(x).tolist() == outside


def test_margin_and_quantile():
    wide, tight, plain = network(), network(), network()
    protect(plain, [X], progress=False, margin=0)
    protect(wide, [X], progress=False, margin=0.5)
    protect(tight, [X], progress=False, margin=0, quantile=0.9)
    assert wide[2].cap.item() == pytest.approx(1.5 * plain[2].cap.item())
    low, high = plain[8].range_guard.low, plain[8].range_guard.high
    torch.testing.assert_close(wide[8].range_guard.high, high + 0.5 * (high - low))
    torch.testing.assert_close(wide[8].range_guard.low, low - 0.5 * (high - low))
    inputs: list[Tensor] = []
    before = network()
    before[1].register_forward_hook(lambda _, __, y: inputs.append(y.detach()))
    before(X)
    assert tight[2].cap.item() == pytest.approx(inputs[0].quantile(0.9).item(), rel=1e-3)


def test_channel_caps():
    model = network()
    protect(model, [X], progress=False, margin=0, granularity="channel")
    before = network()
    found: list[Tensor] = []
    before[1].register_forward_hook(lambda _, __, y: found.append(y.detach()))
    before(X)
    torch.testing.assert_close(model[2].cap, found[0].amax((0, 2, 3)))


class Functions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.b(F.gelu(self.a(x))), "twice": x * 2}


def test_what_is_left_is_named():
    model = Functions().eval()
    protection = protect(model, [torch.randn(9, 4)], progress=False)
    # The layer before the function, the last layer, and the model, of whose outputs one comes from no layer.
    assert {one.name for one in protection.guards} == {"a", "b", ""}
    assert protection.unguarded == (("", "calls gelu as a function, whose output has no guard"),)
    assert "not guarded: (model): calls gelu" in str(protection) and "output range" in str(protection)
    with torch.no_grad():
        model.a.weight[0, 0] = 1e30
    assert model(torch.ones(2, 4))["logits"].abs().max() < 10


def test_the_output_can_be_left_free():
    model = network()
    protection = protect(model, [X], progress=False, outputs=False)
    assert "8" not in {one.name for one in protection.guards}
    assert protection.unguarded == (("8", "the model's output (outputs=False)"),)


def test_layers_that_no_data_reaches_are_named():
    model = nn.ModuleDict({"net": network(), "other": nn.Sequential(nn.Linear(2, 2), nn.ReLU())})
    model.forward = model["net"].forward  # type: ignore[method-assign]
    protection = protect(model, [X], progress=False)
    assert ("other.1", "no clean input reached it") in protection.unguarded


@pytest.mark.parametrize("scale", [0.5, 40.0])
def test_bounded_activations_and_own_caps(scale: float):
    torch.manual_seed(0)
    x = scale * torch.randn(200, 4)
    torch.manual_seed(1)
    layers = [nn.Linear(4, 4), nn.ReLU6(), nn.Linear(4, 4), DReLU(init=0.75), nn.Linear(4, 4), SReLU(0.5)]
    model = nn.Sequential(*layers).eval()
    before = model(x)
    protection = protect(model, [x], progress=False)
    kinds = {one.name: one.kind for one in protection.guards}
    assert torch.equal(model(x), before)
    assert model[3].cap.item() == 0.75 and model[5].cap.item() == 0.5
    if scale == 40.0:
        assert kinds["1"] == kinds["3"] == kinds["5"] == "input range"
    else:
        assert kinds["1"] == "cap"
    with torch.no_grad():
        model[0].bias[0] = model[2].bias[1] = model[4].bias[2] = 1e30
    hit = model[1](model[0](x))
    assert (hit[:, 0] == 0).all(), "a value out of range gave the cap"


def test_counts():
    model = network()
    with pytest.raises(ValueError, match="got one without guards"), guarded_elements(model):
        pass
    protect(model, [X], progress=False)
    with guarded_elements(model) as counts:
        model(X)
        assert set(counts) == {"2", "3.relu", "3.relu_1", "7.range_guard", "8.range_guard"}
        assert not any(counts.values())
        with torch.no_grad():
            model[1].bias[0] = math.nan
        model(X)
    assert counts["2"] == 16 * 64
    before = dict(counts)
    model(X)
    assert counts == before, "counted outside of the block"


def test_hit_bounds_are_named_and_restored():
    model = network()
    protection = protect(model, [X], progress=False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert protection.changed_bounds(model) == []
    with bit_flips(model, flips=5, where="caps", generator=torch.Generator().manual_seed(0)):
        caps = {name: model.get_buffer(name) for name in ("2.cap", "3.relu.cap", "3.relu_1.cap")}
        hit = [name for name, cap in caps.items() if not torch.equal(cap, before[name])]
        assert hit and protection.changed_bounds(model) == hit
    with torch.no_grad():
        model[8].range_guard.high.fill_(math.nan)
    assert protection.restore_bounds(model) == ["8.range_guard.high"]
    assert protection.changed_bounds(model) == []
    with pytest.raises(ValueError, match=r"got one without '2\.cap'"):
        protection.changed_bounds(network())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_and_states(copied: Callable[[nn.Module], Any]):
    model = network()
    protect(model, [X], progress=False)
    other = copied(model)
    with torch.no_grad():
        other[8].bias[0] = 1e30
        model(X)
    assert other(X)[:, 0].eq(0).all() and not model(X)[:, 0].eq(0).any()
    fresh = network()
    protect(fresh, [2 * X], progress=False)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(X), model(X)) and fresh[2].cap == model[2].cap
    assert torch.equal(model.double()(X.double()).float().isfinite(), torch.ones(16, 3, dtype=torch.bool))


def test_rounding_drops_nothing_of_clean_data():
    for dtype in (torch.float32, torch.bfloat16):
        model = network().to(dtype)
        x = X.to(dtype)
        protect(model, [x], progress=False)
        protect_weights(model)
        with guarded_elements(model) as counts, torch.no_grad():
            for batch in (x, x[:1], x.contiguous(memory_format=torch.channels_last)):
                model(batch)
        assert not any(counts.values())


class Named(OrderedDict):  # type: ignore[type-arg]
    """As the outputs of transformers: a dictionary with attributes."""

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        object.__setattr__(self, key, value)


@dataclass
class Found:
    logits: Tensor
    steps: int


@pytest.mark.parametrize("kind", [Named, Found, dict])
def test_outputs_keep_their_class(kind: Any):
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x: Tensor) -> Any:
            logits = 2 * self.net(x)
            return Found(logits, 3) if kind is Found else kind(logits=logits)

    model = Wrapped().eval()
    protection = protect(model, [X], progress=False)
    assert "" in {one.name for one in protection.guards}
    y = model(X)
    assert type(y) is kind
    logits = y["logits"] if kind is dict else y.logits
    torch.testing.assert_close(logits, 2 * model.net(X))


class Scaled(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = super().forward(x).exp()
        return result


def test_a_sequential_with_a_forward_of_its_own_is_named():
    model = Scaled(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    x = torch.randn(9, 4)
    before = model(x)
    protection = protect(model, [x], progress=False)
    assert torch.equal(model(x), before)
    assert any(name == "" and "would call a guard as a layer" in reason for name, reason in protection.unguarded)


def test_a_batch_norm_with_caps_gets_a_range():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), BatchNormDReLU2d(4, init=1.0), nn.Flatten(), nn.Linear(144, 2)).eval()
    found = guards_of(model)
    assert found["1"] == found["3"] == "output range"
    with torch.no_grad():
        model[0].weight.view(-1)[0] = math.nan
    assert model(X).isfinite().all()


def test_caps_that_stay_parameters_are_watched_too():
    model = nn.Sequential(nn.Linear(4, 4), DReLU(init=0.75), nn.Linear(4, 2)).eval()
    protection = protect(model, [torch.randn(99, 4)], progress=False)
    with torch.no_grad():
        model[1].cap.fill_(math.nan)
    assert protection.changed_bounds(model) == ["1.cap"]
    assert protection.restore_bounds(model) == ["1.cap"] and model[1].cap.item() == 0.75


@pytest.mark.slow
def test_compiled_and_exported_it_is_the_same():
    model = network()
    protect(model, [X], progress=False)
    with torch.no_grad():
        model[0].weight.view(-1)[0] = math.inf
        want = model(X)
        torch.testing.assert_close(torch.compile(model, backend="aot_eager", fullgraph=True)(X), want)
        torch.testing.assert_close(torch.export.export(model, (X,)).module()(X), want)


REFUSED: dict[str, tuple[Callable[[], Any], Any, dict[str, Any], type[Exception], str]] = {
    "no module": (lambda: 3, [X], {}, TypeError, "model: got int"),
    "tensor": (network, X, {}, TypeError, "loader: got a Tensor"),
    "empty": (network, [], {}, ValueError, "loader: got no batch"),
    "NaN": (network, [X * math.nan], {}, RuntimeError, "clean data gives NaN or infinity at '0'"),
    "above": (network, [X], {"above": "max"}, ValueError, 'above: got \'max\'; expected "cap" or "zero"'),
    "nan": (network, [X], {"nan": "keep"}, ValueError, "nan: got 'keep'"),
    "quantile": (network, [X], {"quantile": 0}, ValueError, r"quantile: got 0; expected a number in \(0, 1\]"),
    "margin": (network, [X], {"margin": -0.1}, ValueError, "margin: got -0.1"),
    "outputs": (network, [X], {"outputs": 1}, TypeError, "outputs: got int"),
    "nothing": (nn.Flatten, [X], {"outputs": False}, ValueError, "reaches no activation and no layer"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str):
    make, loader, options, error, words = REFUSED[name]
    model = make()
    before = repr(model)
    with pytest.raises(error, match=words):
        protect(model, loader, progress=False, **options)
    assert repr(model) == before


def test_twice_is_refused():
    model = network()
    protect(model, [X], progress=False)
    with pytest.raises(ValueError, match="protected already"):
        protect(model, [X], progress=False)
