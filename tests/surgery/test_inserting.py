"""insert_head and insert_stem on networks of one's own."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.utils import prune, spectral_norm, weight_norm
from torch.optim.swa_utils import AveragedModel

from dreluop.surgery import HeadedLinear, StemmedConv2d, insert_head, insert_stem
from tests.surgery.models import DataDependent, TwoModes, Users


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), nn.Flatten(), nn.Linear(8 * 16, 6), nn.ReLU(), nn.Linear(6, 4),
        nn.LogSoftmax(1),
    )  # fmt: skip


def test_head_goes_before_the_output_layer_whose_weights_stay() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    weight = model[4].weight
    head = insert_head(model)
    assert isinstance(head, HeadedLinear)
    assert head is model[4]
    assert head.weight is weight
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert sorted(set(after) - set(before)) == ["4.activation.cap", "4.head.bias", "4.head.weight"]
    assert head.head.weight.shape == (6, 6)
    assert head.activation.cap.tolist() == [100] * 6
    x = torch.randn(2, 3, 6, 6)
    features = model[:4](x)
    capped = head.head(features).clamp(0, 100)
    torch.testing.assert_close(model(x), (capped @ weight.T + head.bias).log_softmax(1))
    assert repr(head).startswith("HeadedLinear(\n  in_features=6, out_features=4")


def test_head_of_another_width_gives_the_output_layer_new_weights() -> None:
    model = network()
    head = insert_head(model, width=32, granularity="layer", init=3)
    assert head.head.weight.shape == (32, 6)
    assert (head.weight.shape, head.in_features) == ((4, 32), 32)
    assert head.activation.cap.tolist() == [3]
    assert model(torch.randn(2, 3, 6, 6)).shape == (2, 4)
    assert head.weight.abs().max() > 0


def test_head_where_the_modes_differ_and_by_name() -> None:
    model = TwoModes()
    insert_head(model, layer="aux")
    assert [name for name, module in model.named_modules() if isinstance(module, HeadedLinear)] == ["aux"]
    model = Users()
    assert insert_head(model) is model.classifier[3]


def test_stem_goes_before_the_first_convolution_whose_weights_stay() -> None:
    model = network().double()
    before = copy.deepcopy(model.state_dict())
    stem = insert_stem(model)
    assert isinstance(stem, StemmedConv2d)
    assert stem is model[0][0]
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert sorted(set(model.state_dict()) - set(before)) == [
        "0.0.activation.cap", "0.0.stem.bias", "0.0.stem.weight",
    ]  # fmt: skip
    assert stem.activation.cap.shape == (3,)
    x = torch.randn(2, 3, 6, 6).double()
    want = nn.functional.conv2d(stem.stem(x).clamp(0, 100), stem.weight, stem.bias)
    torch.testing.assert_close(stem(x), want)
    assert model(x).shape == (2, 4)


def test_stem_of_other_sizes() -> None:
    model = network()
    stem = insert_stem(model, channels=5, kernel_size=5, granularity="neuron", example_input=torch.ones(1, 3, 6, 6))
    assert (stem.stem.kernel_size, stem.in_channels, stem.weight.shape) == ((5, 5), 5, (8, 5, 3, 3))
    assert stem.activation.cap.shape == (5, 6, 6)
    assert model(torch.randn(2, 3, 6, 6)).shape == (2, 4)


def test_both_copy_pickle_compile_and_train() -> None:
    model = network()
    insert_head(model)
    insert_stem(model)
    x = torch.randn(2, 3, 6, 6)
    want = model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), want)
    assert torch.equal(torch.compile(model, fullgraph=True, backend="eager")(x), want)
    want.exp().square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


class Unregistered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Linear(2, 2)]

    def forward(self, x: Tensor) -> Any:
        return self.layers[0](x)


class Sum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Any:
        return self.a(x) + self.b(x)


class OwnLinear(nn.Linear):
    pass


class OwnWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight)


def own_forward(module: nn.Module) -> nn.Module:
    module.forward = lambda x: x  # type: ignore[method-assign]
    return module


class Wrapped(nn.Module):
    """Its output layer is before a module that returns its second argument."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc, self.tail = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten()), nn.Linear(4, 4), Second()

    def forward(self, x: Tensor, labels: Tensor | None = None, *rest: Any, **options: Any) -> Any:
        y = self.tail(x, y=self.fc(self.body(x), **options))
        return y if labels is None else nn.functional.cross_entropy(y, labels)


class Second(nn.Module):
    def forward(self, x: Tensor, y: Tensor, scale: float = 1.0) -> Tensor:
        return y


WRAPPERS: dict[str, Callable[[Wrapped], nn.Module]] = {
    "none": lambda model: model,
    "average": AveragedModel,
    "parallel": nn.DataParallel,
    "graph": lambda model: nn.Sequential(fx.symbolic_trace(nn.Sequential(model.body, model.fc))),
    "nested": lambda model: nn.Sequential(nn.Identity(), nn.Sequential(), nn.Sequential(model, nn.Dropout())),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_layers_are_found_through_wrappers_and_arguments(wrapper: str) -> None:
    model = WRAPPERS[wrapper](Wrapped())
    layers = list(model.modules())
    assert insert_head(model) is next(layer for layer in layers if isinstance(layer, nn.Linear))
    assert insert_stem(model) is next(layer for layer in layers if isinstance(layer, nn.Conv2d))


class Gate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_only_what_is_on_the_way_is_traced() -> None:
    model = nn.Sequential(Gate(), nn.Conv2d(3, 3, 1), DataDependent(), nn.Linear(5, 5))
    assert insert_head(model) is model[3]
    assert insert_stem(model) is model[1]


def test_the_layer_of_a_model_that_is_one() -> None:
    layer = nn.Linear(3, 3)
    assert insert_head(layer, layer="") is layer


@pytest.mark.parametrize(
    "hook", [weight_norm, spectral_norm, lambda layer: prune.random_unstructured(layer, "weight", 2)]
)
def test_weights_that_hooks_compute_stay(hook: Any) -> None:
    model = nn.Sequential(hook(nn.Conv2d(3, 3, 1)), nn.Flatten(), hook(nn.Linear(3, 3))).eval()
    names = set(model.state_dict())
    head, stem = insert_head(model), insert_stem(model)
    x = torch.randn(2, 3, 1, 1)
    capped = stem.stem(x).clamp(0, 100)
    y = model(x)
    y.sum().backward()
    assert names < set(model.state_dict())
    features = nn.functional.conv2d(capped, stem.weight, stem.bias).flatten(1)
    torch.testing.assert_close(y, head.head(features).clamp(0, 100) @ head.weight.T + head.bias)


BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "width": (lambda: insert_head(network(), 0), ValueError, "width: got 0; expected at least 1"),
    "width_type": (lambda: insert_head(network(), 2.0), TypeError, "width: got float; expected an int"),
    "granularity": (lambda: insert_head(network(), granularity="x"), ValueError, "granularity: got 'x'"),
    "init": (lambda: insert_head(network(), init=-1), ValueError, "init: got -1; expected a finite number > 0"),
    "name": (lambda: insert_head(network(), layer="9"), ValueError, "layer: the model has no module '9'"),
    "name_type": (lambda: insert_head(network(), layer=4), TypeError, "layer: got int; expected the name of a module"),
    "not_linear": (lambda: insert_head(network(), layer="3"), ValueError, "the output layer is a ReLU; expected a"),
    "convolution": (
        lambda: insert_head(nn.Sequential(nn.Conv2d(3, 3, 1))), ValueError, "the output layer is a Conv2d; expected"
    ),
    "twice": (lambda: [insert_head(m) for m in [network()] * 2], ValueError, "the output layer is a HeadedLinear;"),
    "untraced": (
        lambda: insert_head(DataDependent()), ValueError,
        r"layer: the output layer cannot be found \(symbolically.*; the model is a tests.surgery.models.Data.*name",
    ),
    "untraced_inside": (
        lambda: insert_head(nn.Sequential(nn.Linear(2, 5), DataDependent())), ValueError,
        "cannot be found .*; '1' is a tests.surgery.models.DataDependent.; name it with layer=",
    ),
    "unregistered": (
        lambda: insert_head(nn.Sequential(Unregistered())), ValueError,
        "cannot be found .it calls a Linear that is no submodule of it; hold it in an nn.ModuleList; '0' is a ",
    ),
    "script": (
        lambda: insert_head(nn.Sequential(torch.jit.script(nn.Linear(2, 2)))), ValueError,
        "it is a TorchScript module; '0"
    ),
    "subclass": (
        lambda: insert_head(nn.Sequential(nn.Sequential(OwnLinear(3, 3)))), ValueError,
        "the output layer is a tests.surgery.test_inserting.OwnLinear, a subclass of torch.nn.Linear; expected a "
        "torch.nn.Linear: put a torch.nn.Linear with its weights at '0.0', or name another with layer=",
    ),
    "own_forward": (
        lambda: insert_head(nn.Sequential(own_forward(nn.Linear(3, 3)))), ValueError,
        "the output layer is a Linear whose forward is set on the instance; expected",
    ),
    "several": (
        lambda: insert_head(nn.Sequential(nn.LSTM(3, 3))), ValueError,
        "layer: the output layer is a LSTM; expected a torch.nn.Linear: name another with layer=",
    ),
    "none_single": (lambda: insert_head(Sum()), ValueError, "what a Sum returns comes from no single layer; name it"),
    "hook_head": (
        lambda: insert_head(nn.Sequential(weight_norm(nn.Linear(3, 3))), 4), ValueError,
        "width: got 4; expected 3, as a hook computes weights of the layer",
    ),
    "hook_stem": (
        lambda: insert_stem(nn.Sequential(spectral_norm(nn.Conv2d(3, 3, 1))), 4), ValueError,
        "channels: got 4; expected 3, as a hook"
    ),
    "own_weight": (
        lambda: insert_stem(nn.Sequential(OwnWeight(), nn.Conv2d(3, 3, 1))), ValueError, "first layer is a OwnWeight;"
    ),
    "torchs": (
        lambda: insert_stem(nn.Sequential(nn.TransformerEncoderLayer(4, 2), nn.Conv2d(3, 3, 1))), ValueError,
        "the first layer is a TransformerEncoderLayer; expected a torch.nn.Conv2d: name another with layer=",
    ),
    "module": (lambda: insert_head(3), TypeError, "model: got int; expected a torch.nn.Module"),
    "linear": (lambda: insert_head(nn.Linear(2, 2)), ValueError, "the output layer cannot be found .it is one of"),
    "kernel": (lambda: insert_stem(network(), kernel_size=2), ValueError, "kernel_size: got 2; expected an odd number"),
    "channels": (lambda: insert_stem(network(), 0), ValueError, "channels: got 0; expected at least 1"),
    "stem_neuron": (
        lambda: insert_stem(network(), granularity="neuron"), ValueError, "example_input: neuron caps need the size"
    ),
    "stem_first": (
        lambda: insert_stem(nn.Sequential(nn.Linear(3, 3))), ValueError, "the first layer is a Linear; expected a"
    ),
    "stem_none": (lambda: insert_stem(nn.Sequential(nn.ReLU())), ValueError, "layer: no layer with weights is found"),
    "stem_untraced": (lambda: insert_stem(DataDependent()), ValueError, "layer: the first layer cannot be found"),
    "groups": (
        lambda: insert_stem(nn.Sequential(nn.Conv2d(4, 4, 1, groups=2)), 2), ValueError,
        "channels: got 2; the first convolution has groups and takes 4 only",
    ),
    "example": (
        lambda: insert_stem(network(), granularity="neuron", example_input=torch.ones(1, 2, 6, 6)), ValueError,
        "example_input: the model cannot run on it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_argument(name: str) -> None:
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()
