"""Kinds of user code in which an activation was once missed, broken or given wrong caps (issue 18)."""

from __future__ import annotations

import copy
import enum
import functools
import logging
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (as users write it)
from torch import Tensor, nn
from torch.nn.functional import relu as plain_relu

from dreluop import DReLU
from dreluop.surgery import calibrate_caps, replace_activations
from tests.surgery.counting import check, verified
from tests.surgery.helpers import d_relus, open_caps

Made = Callable[[], nn.Module]


class Block(nn.Module):
    """What most networks here begin as."""

    def __init__(self) -> None:
        super().__init__()
        self.lin, self.lin2 = nn.Linear(4, 4), nn.Linear(4, 4)
        self.act = nn.ReLU()


def inputs() -> Tensor:
    return torch.randn(3, 4)


@pytest.fixture(params=[True, False], ids=["example", "no_example"])
def run(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def done(model: nn.Module, example: Any, run: bool, **options: Any) -> Any:
    """The report, where nothing may remain."""
    report = check(model, example, run=run, granularity="channel" if run else "layer", **options)
    assert not report.remaining, str(report)
    return report


# 1: one activation in several places.


def shared() -> nn.Module:
    act = nn.ReLU()
    return nn.Sequential(nn.Linear(4, 8), act, nn.Linear(8, 6), act)


def test_a_shared_activation_becomes_two(run: bool) -> None:
    model = shared()
    done(model, inputs(), run)
    assert [one.num_parameters for one in d_relus(model).values()] == ([8, 6] if run else [1, 1])
    assert model[1]._forward_hooks is not model[3]._forward_hooks
    assert model[1]._forward_pre_hooks is not model[3]._forward_pre_hooks


def test_calibration_of_a_shared_activation_is_that_of_two() -> None:
    torch.manual_seed(0)
    model = shared()
    other = copy.deepcopy(model)
    other[3] = nn.ReLU()
    data = [(torch.randn(64, 4),) for _ in range(2)]
    caps = []
    for one in (model, other):
        replace_activations(one, granularity="layer")
        calibrate_caps(one, data)
        caps.append([module.cap.item() for module in d_relus(one).values()])
    assert caps[0] == caps[1]
    assert caps[0][0] != caps[0][1]


def test_hooks_of_a_shared_activation_run_once_per_call() -> None:
    model, calls = shared(), []
    model[1].register_forward_hook(lambda *_: calls.append(1))
    replace_activations(model)
    model(inputs())
    assert len(calls) == 2


class SharedByThree(Block):
    """In a Sequential, in another one, and called by name."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Linear(4, 6), self.act, nn.Linear(6, 4), self.act)
        self.two = nn.ModuleList([nn.Linear(4, 5), self.act])

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.lin(self.one(x)))
        for layer in self.two:
            x = layer(x)
        return x


def test_an_activation_in_two_containers_and_an_attribute() -> None:
    model = SharedByThree()
    report = done(model, inputs(), run=True)
    assert sorted(site.cap_shape for site in report.replaced) == [(4,), (4,), (5,), (6,)]


# 2: names other than the first path.


class SecondName(Block):
    def __init__(self) -> None:
        super().__init__()
        self.act = None
        self.layers = nn.ModuleList([self.lin, nn.ReLU()])
        self.relu = self.layers[1]

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.lin2(self.relu(self.lin(x))))


class ListWithAddModule(Block):
    def __init__(self) -> None:
        super().__init__()
        self.plain = [self.lin, nn.ReLU(), self.lin2, nn.ReLU6()]
        for index, layer in enumerate(self.plain):
            self.add_module(f"layer{index}", layer)
        del self.act

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.plain:
            x = layer(x)
        return x


class UnregisteredList(Block):
    def __init__(self) -> None:
        super().__init__()
        self.acts = [nn.ReLU(), F.relu]

    def forward(self, x: Tensor) -> Tensor:
        return self.acts[1](self.lin2(self.acts[0](self.lin(x))))


class DictionaryOfActivations(Block):
    def __init__(self) -> None:
        super().__init__()
        self.acts = {"relu": nn.ReLU(), "act": self.act, "function": F.relu6}

    def forward(self, x: Tensor) -> Tensor:
        x = self.acts["relu"](self.lin(x))
        return self.acts["function"](self.acts["act"](self.lin2(x)))


class Partials(Block):
    def __init__(self) -> None:
        super().__init__()
        self.of_function = functools.partial(F.hardtanh, min_val=0.0, max_val=6.0)
        self.of_module = functools.partial(self.act)

    def forward(self, x: Tensor) -> Tensor:
        local = functools.partial(F.relu, inplace=True)
        return self.of_module(local(self.lin2(self.of_function(self.lin(x)))) - 0.1)


class Mangled(Block):
    def __init__(self) -> None:
        super().__init__()
        self.__act = nn.ReLU()

    def __twice(self, x: Tensor) -> Tensor:
        return self.__act(self.lin2(self.__act(self.lin(x))))

    def forward(self, x: Tensor) -> Tensor:
        return self.__twice(x)


TABLE = {"relu": F.relu}


class Looked(Block):
    kind = staticmethod(F.relu6)

    def __init__(self) -> None:
        super().__init__()
        self.name = "relu"

    def forward(self, x: Tensor) -> Tensor:
        x = getattr(F, self.name)(self.lin(x))
        x = TABLE["relu"](x - 0.1) + plain_relu(input=self.lin2(x))
        return self.kind(getattr(self, "act")(x - 0.2))  # noqa: B009 (user code)


@pytest.mark.parametrize(
    ("make", "sites"),
    [
        (SecondName, 2), (ListWithAddModule, 2), (UnregisteredList, 2), (DictionaryOfActivations, 3), (Partials, 3),
        (Mangled, 2), (Looked, 5),
    ],
)  # fmt: skip
def test_names_other_than_the_first_path(make: Made, sites: int) -> None:
    assert len(done(make(), inputs(), run=True).replaced) == sites


@pytest.mark.parametrize("make", [SecondName, ListWithAddModule, UnregisteredList, DictionaryOfActivations, Partials])
def test_names_other_than_the_first_path_without_an_example(make: Made) -> None:
    done(make(), inputs(), run=False)


def closed_over() -> nn.Module:
    act = nn.ReLU()

    class Closed(Block):
        def forward(self, x: Tensor) -> Tensor:
            return act(self.lin(x)) + plain_relu(self.lin2(x))

    return Closed()


def test_a_module_that_only_a_closure_holds(run: bool) -> None:
    assert [site.source for site in done(closed_over(), inputs(), run).replaced if site.source != "module act"]


# 3: modules of torch that hold a user's.


def encoder(**options: Any) -> nn.Module:
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, **options)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


@pytest.mark.parametrize("activation", [F.relu, nn.ReLU(), "relu"], ids=["function", "module", "name"])
def test_transformer_encoder(activation: Any, run: bool) -> None:
    assert len(done(encoder(activation=activation), torch.randn(2, 3, 4), run).replaced) == 2


def test_transformer_and_its_copies(run: bool) -> None:
    model, x = nn.Transformer(4, 2, 1, 1, 8, batch_first=True), torch.randn(2, 3, 4)
    report = done(model, (x, x), run)
    assert len(report.replaced) == 2
    with torch.no_grad():
        for module in d_relus(model).values():
            module.cap.fill_(0.1)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(copied.eval()(x, x), model.eval()(x, x))


def test_wrappers_of_torch(run: bool) -> None:
    inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    wrapped = [
        torch.optim.swa_utils.AveragedModel(copy.deepcopy(inner)),
        torch.ao.quantization.QuantWrapper(copy.deepcopy(inner)),
        torch.distributed.algorithms._checkpoint.checkpoint_wrapper.checkpoint_wrapper(copy.deepcopy(inner)),
    ]
    for model in wrapped:
        assert len(done(model, inputs(), run).replaced) == 1


def test_a_relu_inside_an_rnn_is_named(run: bool) -> None:
    model = nn.ModuleDict({"rnn": nn.RNN(4, 4, nonlinearity="relu"), "act": nn.ReLU()})
    model.forward = lambda x: model["act"](model["rnn"](x)[0])  # set on the instance: a wrapper is copied by itself
    report = replace_activations(model, granularity="layer")
    assert any(one.module == "rnn" for one in report.remaining)


# 4: (batch, tokens, features) behind an unknown layer.


class Unknown(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("btf,fg->btg", x, torch.ones(4, 6))


def test_channels_are_never_guessed() -> None:
    model = nn.Sequential(Unknown(), nn.ReLU(), nn.ReLU6())
    x = torch.randn(2, 3, 4)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"^dim: .*'1'.*'2'.*dim=-1"):
        replace_activations(model, example_input=x)
    assert not d_relus(model)
    assert model.state_dict().keys() == before.keys()
    replace_activations(model, example_input=x, dim=lambda site: -1 if site.name == "1" else 1)
    assert [one.num_parameters for one in d_relus(model).values()] == [6, 3]


@pytest.mark.parametrize(("dim", "channels"), [(-1, 6), (1, 3), (2, 6)])
def test_a_dim_for_all(dim: int, channels: int) -> None:
    model = nn.Sequential(Unknown(), nn.ReLU())
    replace_activations(model, example_input=torch.randn(2, 3, 4), dim=dim)
    assert model[1].num_parameters == channels


# 5: optional arguments.


class Labeled(Block):
    def forward(self, x: Tensor, labels: Tensor | None = None, *, scale: float = 1.0) -> dict[str, Tensor]:
        y = self.act(self.lin(x)) * scale
        if labels is None:
            return {"y": y}
        hidden = F.relu(self.lin2(y))
        return {"y": y, "loss": F.cross_entropy(hidden, labels)}


def test_optional_arguments(run: bool) -> None:
    x, labels = inputs(), torch.tensor([0, 1, 2])
    model = Labeled()
    report = done(model, {"x": x, "labels": labels, "scale": 2.0}, run)
    assert len(report.replaced) == 2 and not report.unreached
    assert set(model(x, labels)) == {"y", "loss"}


def test_a_relu_that_only_an_optional_argument_reaches() -> None:
    model, x = Labeled(), inputs()
    report = replace_activations(model, example_input=x, granularity="layer")
    assert [site.source for site in report.unreached] == ["F.relu"]
    verified(report, model, {"x": x, "labels": torch.tensor([0, 1, 2])})
    assert not report.unreached and not report.remaining


# 6, 7, 8, 14: what else stands in a forward.


class Kind(enum.Enum):
    A = "a"


class Constants(Block):
    kind, dtype, device = Kind.A, torch.float32, torch.device("cpu")

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.lin(x)) * np.sqrt(2) + np.float32(3) + np.int64(1)
        y = y.to(self.device, self.dtype) + torch.eye(4, dtype=self.dtype)[:3] + torch.arange(x.size(1))
        return torch.relu(self.lin2(y)) if self.kind is Kind.A else y


@dataclass
class Output:
    y: Tensor
    more: Any = None


class Questions(Block):
    log = logging.getLogger(__name__)
    scale = 2

    def forward(self, x: Tensor) -> Output:
        assert x.shape[-1] == 4, f"got {x.shape}"
        if x.dim() == 3 or len(x) > 100 or x.dtype == torch.float64:
            x = x[0]
        self.log.debug("shape %s", x.shape)
        y = nn.ReLU(inplace=True)(self.lin(x))
        y = F.avg_pool2d(y[None, None], (1, x.size(1) // 4))[0, 0]
        act = nn.ReLU6()
        return Output(y=act(self.lin2(torch.cat([y, x], 1)[:, : self.scale * 2])))


class Sliced(Block):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(self.lin, nn.ReLU(), self.lin2, nn.ReLU())
        del self.act

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers[2:](self.layers[:2](x))
        for layer in self.layers[-2:]:
            x = layer(x)
        return x


class Calls(Block):
    """The input under its own name, packed, by position of another name."""

    def forward(self, x: Tensor, *args: Tensor, **kwargs: Any) -> Tensor:
        x = self.act(input=self.lin(x))
        x = self.act(*[self.lin2(x)])
        x = self.act(**{"input": x - 0.1})
        return F.relu(input=x - 0.2, inplace=False)


class Statements(Block):
    def parts(self, x: Tensor) -> Any:
        yield F.relu(self.lin(x))
        yield from [torch.relu(part) for part in (x, self.lin2(x))]

    def forward(self, x: Tensor) -> Tensor:
        count = 0

        def counted(value: Tensor) -> Tensor:
            nonlocal count
            count += 1
            return F.relu(value)

        if (y := counted(self.lin(x))).dim() == 2:
            x = y * count
        match x.dim():
            case 2:
                x = torch.relu(self.lin2(x))
            case other:
                raise ValueError(other)
        return sum(self.parts(x), torch.zeros(()))


class Asks(Block):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([self.lin, nn.ReLU(), self.lin2, nn.ReLU6(), nn.Hardtanh(0, 2)])
        del self.act

    def scale(self, layer: nn.Module) -> int:
        if type(layer) is nn.ReLU:
            return 2
        return 3 if isinstance(layer, nn.ReLU6) else 5 if isinstance(layer, nn.Hardtanh | nn.Linear) else 7

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for layer in self.layers:
            x = layer(x)
            out = out + x * self.scale(layer)
        return out


class NamesItself(Block):
    factor = 2

    def forward(self, x: Tensor) -> Tensor:
        return self.act(NamesItself.factor * self.lin2(self.act(self.lin(x))))


@pytest.mark.parametrize(
    ("make", "sites"),
    [
        (Constants, 2), (Questions, 2), (Sliced, 2), (Calls, 4), (Statements, 4), (Asks, 3), (NamesItself, 2),
    ],
)  # fmt: skip
def test_what_stands_in_a_forward(make: Made, sites: int, run: bool) -> None:
    report = done(make(), inputs(), run)
    assert len(report.replaced) - len(report.unreached) == sites, str(report)


def test_after_a_compilation(fresh_compiler: None, capfd: pytest.CaptureFixture[str]) -> None:
    torch.compile(nn.Linear(2, 2), backend="eager")(torch.ones(1, 2))
    capfd.readouterr()
    assert len(done(Sliced(), inputs(), run=True).replaced) == 2
    assert capfd.readouterr() == ("", "")


# 9: one site that cannot be done.


class TwoWidths(Block):
    def __init__(self) -> None:
        super().__init__()
        self.widths = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 8)])

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.relu(self.lin(x))
        return [self.act(layer(x)) for layer in self.widths]


def test_a_site_of_two_widths_is_left() -> None:
    report = check(TwoWidths(), inputs(), run=True)
    assert [site.source for site in report.replaced] == ["F.relu"]
    (remaining,) = report.remaining
    assert remaining.what == "module act" and "(3, 8)" in remaining.reason


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
    assert all(one.line.startswith("test_kinds_of_code.py:") for one in report.remaining if one.calls)
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
