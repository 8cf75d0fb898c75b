"""Activations in several places, under several names or inside modules of torch: once missed or given wrong caps."""

from __future__ import annotations

import copy
import functools
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (as users write it)
from torch import Tensor, nn
from torch.nn.functional import relu as plain_relu

from dreluop.surgery import calibrate_caps, replace_activations
from tests.surgery.helpers import d_relus
from tests.surgery.kinds import Block, Made, done, inputs

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
