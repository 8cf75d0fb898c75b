"""Methods that users call, edits after surgery, and what cannot be replaced or is not there."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (as users write it)
from torch import Tensor, nn
from torch.nn.functional import relu as plain_relu

from dreluop import DReLU
from dreluop.surgery import replace_activations
from tests.surgery.counting import check, verified
from tests.surgery.helpers import d_relus, open_caps
from tests.surgery.kinds import Block, Made, Unknown, inputs

# 10: methods that users call, flags, helpers.


def helper(x: Tensor) -> Tensor:
    return F.relu(x)


class Coder(Block):
    flag = False

    def encode(self, x: Tensor) -> Tensor:
        return F.relu(self.lin(x))

    def decode(self, z: Tensor) -> Tensor:
        return self.act(self.lin2(z))

    def forward(self, x: Tensor) -> Tensor:
        x = self.decode(self.encode(x))
        return torch.relu(x - 0.1) if self.flag else x


def test_methods_that_users_call_and_flags_set_later() -> None:
    model = Coder()
    report = replace_activations(model, example_input=inputs(), granularity="layer", init=1e-3)
    assert [site.source for site in report.unreached] == ["torch.relu"]
    model.flag = True
    for call in (model.encode, model.decode, model):
        assert call(inputs()).max() <= 1e-3
    verified(report, model, inputs())
    assert not report.unreached and not report.remaining


class Helped(Block):
    def forward(self, x: Tensor) -> Tensor:
        return helper(self.lin(x)) + torch.cat(list(map(F.relu, [self.lin2(x)])))


class Defaults(Block):
    def forward(self, x: Tensor, act: Any = F.relu) -> Tensor:
        return act(self.lin(x)) + self.other(self.lin2(x))

    def other(self, x: Tensor, *, act: Any = plain_relu) -> Tensor:
        return act(x)


class OnInstance(Block):
    def __init__(self) -> None:
        super().__init__()
        self.forward = self.other

    def other(self, x: Tensor) -> Tensor:
        return F.relu(self.lin(x))


class Static(Block):
    @staticmethod
    def of_static(x: Tensor) -> Tensor:
        return F.relu(x)

    @classmethod
    def of_class(cls, x: Tensor) -> Tensor:
        return F.relu(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.of_static(self.lin(x)) + self.of_class(self.lin2(x))


class ComputedAct(Block):
    @functools.cached_property
    def hot(self) -> nn.Module:
        return nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.hot(self.lin(x)))


@pytest.mark.parametrize(
    ("make", "lines"), [(Helped, 2), (Defaults, 2), (OnInstance, 1), (Static, 2), (ComputedAct, 1)]
)
def test_what_cannot_be_done_is_named(make: Made, lines: int, run: bool) -> None:
    report = check(make(), inputs(), run=run, granularity="layer")
    assert len({one.line for one in report.remaining if one.calls}) in (1, lines)
    assert all(one.line.startswith("test_kinds_of_use.py:") for one in report.remaining if one.calls)
    assert "remaining: " in str(report)


# 12: no activations to cap.


class HardSigmoids(Block):
    def __init__(self) -> None:
        super().__init__()
        del self.act

    def forward(self, x: Tensor) -> list[Tensor]:
        y = self.lin(x) + 3
        return [
            x * F.relu6(self.lin(x) + 3.0) / 6.0,
            F.relu6(y, inplace=False) * (1 / 6),
            F.relu6(torch.add(self.lin2(x), 3)).div(6),
            F.hardtanh(self.lin2(x).add(3), 0, 6) / 6,
            (self.lin2(x) + 3).clamp(0, 6) / 6,
        ]


class OfParameters(Block):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.randn(4))
        self.gains = nn.ParameterList([nn.Parameter(torch.randn(4))])

    def forward(self, x: Tensor) -> Tensor:
        weight = self.gain * 2
        weight = self.act(weight)
        return F.linear(x, F.relu(self.lin.weight)) * weight * torch.relu(self.gains[0]) * self.gain.relu()


@pytest.mark.parametrize(("make", "calls"), [(HardSigmoids, 5), (OfParameters, 4)])
def test_no_activations_to_cap(make: Made, calls: int, run: bool) -> None:
    report = check(make(), inputs(), run=run, granularity="layer")
    assert not report.replaced
    assert sum(one.calls for one in report.remaining) == calls
    assert all("hard sigmoid" in one.reason or "parameters" in one.reason for one in report.remaining)


# 13: no example, and channels that no layer tells.


def test_one_error_names_all_sites_and_the_cure() -> None:
    model = nn.Sequential(Unknown(), nn.ReLU(), Unknown(), nn.ReLU(), nn.Linear(6, 6), nn.ReLU())
    with pytest.raises(ValueError, match=r"^example_input: .*'1', '3'; .*example_input=.*granularity='layer'"):
        replace_activations(model)
    assert not d_relus(model)


# Edits after surgery.


class Editable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin, self.relu = nn.Linear(4, 4), nn.ReLU()
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.ReLU()])
        self.seq = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.gains = nn.ParameterList([nn.Parameter(torch.ones(4))])
        self.adapters = nn.ModuleDict()
        self.down: nn.Module | None = None
        self.norm: nn.Module = nn.Identity()

    def inner(self, x: Tensor) -> Tensor:
        return self.relu(self.lin(self.relu(x)))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        for gain in self.gains:
            x = x * gain
        for layer in self.seq:
            x = layer(x)
        if "k" in self.adapters:
            x = self.adapters["k"](x)
        extra = getattr(self, "extra", None)
        if extra is not None:
            x = extra(x)
        x = self.inner(x) + self.layers[-1](x)
        identity = x if self.down is None else self.down(x)
        x = F.relu(self.lin(x) + identity)
        if self.lin.bias is None:
            x = x * 2
        return x if isinstance(self.norm, nn.Identity) else self.norm(x)


def _tanh_inner(self: Editable, x: Tensor) -> Tensor:
    return torch.tanh(self.lin(x))


def _new_linear() -> nn.Linear:
    layer = nn.Linear(4, 4)
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(-1, 1, 16).reshape(4, 4))
    nn.init.zeros_(layer.bias)
    return layer


EDITS: dict[str, Callable[[Any], Any]] = {
    "append to a ModuleList": lambda m: m.layers.append(_new_linear()),
    "append to a Sequential": lambda m: m.seq.append(_new_linear()),
    "append to a ParameterList": lambda m: m.gains.append(nn.Parameter(torch.full((4,), 0.5))),
    "a key": lambda m: m.adapters.update({"k": _new_linear()}),
    "an attribute": lambda m: setattr(m, "extra", _new_linear()),
    "the last": lambda m: m.layers.__setitem__(-1, nn.Tanh()),
    "a method on the instance": lambda m: setattr(m, "inner", functools.partial(_tanh_inner, m)),
    "no bias": lambda m: setattr(m.lin, "bias", None),
    "another class": lambda m: setattr(m, "norm", nn.LayerNorm(4)),
    "a layer for None": lambda m: setattr(m, "down", _new_linear()),
    "another activation": lambda m: setattr(m, "relu", nn.Tanh()),
    "a deleted layer": lambda m: m.layers.__delitem__(1),
    "an inserted layer": lambda m: m.layers.insert(0, _new_linear()),
    "an extended list": lambda m: m.layers.extend([_new_linear(), nn.ReLU()]),
    "an activation in a Sequential": lambda m: m.seq.__setitem__(1, nn.Sigmoid()),
}


@pytest.mark.parametrize("name", EDITS)
def test_edits_after_surgery_do_what_they_did_before(name: str, run: bool) -> None:
    torch.manual_seed(0)
    model, x = Editable(), inputs()
    operated = copy.deepcopy(model)
    report = replace_activations(operated, granularity="layer", example_input=x if run else None)
    open_caps(operated, report)
    unedited = model(x)
    assert torch.equal(operated(x), unedited)
    EDITS[name](model)
    EDITS[name](operated)
    assert not torch.equal(model(x), unedited)
    assert torch.equal(operated(x), model(x))


def test_another_module_of_a_changed_class_has_activations() -> None:
    torch.manual_seed(0)
    model = Editable()
    replace_activations(model, granularity="layer", init=1e-3)
    torch.manual_seed(0)
    fresh = type(model)()
    torch.manual_seed(0)
    x = inputs()
    torch.manual_seed(0)
    assert torch.equal(fresh(x), Editable()(x))
    assert not any(isinstance(module, DReLU) for module in fresh.modules())
    assert type(fresh) is Editable


def test_an_infinite_bound_is_none() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Hardtanh(0.0, torch.inf))
    (site,) = replace_activations(model, init=3.0).replaced
    assert site.bound is None
    assert model[1].cap.tolist() == [3.0] * 4


@pytest.mark.parametrize("low", [-1.0, -0.5, 0.5])
def test_another_lower_bound_is_another_function(low: float) -> None:
    bounded = nn.Hardtanh(low, 1.0)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), bounded)
    assert len(replace_activations(model).replaced) == 1
    assert model[3] is bounded
