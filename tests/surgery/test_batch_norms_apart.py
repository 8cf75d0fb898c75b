"""fuse="batch_norm": modules and Sequential containers that keep a batch norm and its activation apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from dreluop import DReLU
from tests.surgery.batch_norms import (
    Doubled,
    Parts,
    assert_equal_in_training_and_eval,
    layers,
    operated,
    with_forward,
)
from tests.surgery.helpers import open_caps


def nested(self: Any, x: Tensor) -> Tensor:
    return self.act(self.bn(self.conv(x)))  # type: ignore[no-any-return]


def block(norm: nn.Module | None = None, activation: nn.Module | None = None) -> nn.Module:
    """A convolution, a batch norm and an activation, in code."""
    made = with_forward(nested)
    made.bn, made.act = norm or made.bn, activation or made.act
    return made


class MyNorm(nn.BatchNorm2d):
    pass


def hooked(module: nn.Module) -> nn.Module:
    module.register_forward_hook(lambda *_: None)
    return module


def parametrized() -> nn.Module:
    return parametrize.register_parametrization(nn.BatchNorm2d(4), "weight", Doubled())


def with_own_forward() -> nn.Module:
    norm = nn.BatchNorm2d(4)
    norm.forward = norm.forward
    return norm


def held_twice() -> nn.Module:
    model = block()
    model.all = [model.bn]
    return model


MODULES = {
    "SyncBatchNorm": (lambda: block(nn.SyncBatchNorm(4)), "its batch norm is a SyncBatchNorm; expected just"),
    "subclass": (lambda: block(MyNorm(4)), "its batch norm is a MyNorm; expected just"),
    "parametrized": (lambda: block(parametrized()), "its batch norm is a ParametrizedBatchNorm2d; expected just"),
    "forward": (lambda: block(with_own_forward()), "the forward of its batch norm is set on the instance"),
    "hooks": (lambda: block(hooked(nn.BatchNorm2d(4))), "its batch norm has hooks"),
    "hooks after": (lambda: block(activation=hooked(nn.ReLU())), "the activation has hooks"),
    "held twice": (held_twice, "its batch norm is held in more than one place"),
}


@pytest.mark.parametrize("kind", MODULES)
def test_modules_that_are_kept_apart(kind: str) -> None:
    make, reason = MODULES[kind]
    original = make()
    x = torch.randn(3, 4, 5, 5)
    model, report = operated(original, example_input=x if kind == "forward" else None)
    (site,) = report.sites
    assert site.action == "replaced"
    assert site.reason.startswith(f"kept apart: {reason}")
    assert type(model.bn) is type(original.bn)
    open_caps(model, report)
    assert torch.equal(model.eval()(x), original.eval()(x))


def test_caps_that_a_batch_norm_cannot_have() -> None:
    x = torch.randn(3, 4, 5, 5)
    for options in ({"granularity": "neuron"}, {"dim": 2}):
        _, report = operated(block(), example_input=x, **options)
        assert report.sites[0].reason == (
            "kept apart: its caps are not one for all or one per channel of the batch norm"
        )
    model, report = operated(block(), granularity="layer")
    assert report.in_batch_norms
    assert model.bn.cap.shape == (1,)


def arguments_of_a_function(self: Any, x: Tensor) -> Tensor:
    return self.function(self.bn(self.conv(x)), 0.0, 0.5)


def test_arguments_that_a_function_in_an_attribute_gets() -> None:
    made = type("Made", (Parts,), {"forward": arguments_of_a_function, "__module__": __name__})()
    del made.act
    made.function = functional.hardtanh
    _, report = operated(made)
    reason = "kept apart: the call of the activation has other arguments, which may change"
    assert [site.reason for site in report.sites] == [reason]


class TwoMethods(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.act = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))

    def features(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x))


def test_calls_that_share_a_d_relu() -> None:
    model, report = operated(TwoMethods())
    assert "kept apart: another call has its D-ReLU too" in [site.reason for site in report.sites]
    assert isinstance(model.act, DReLU)


class Holder(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) if self.body is not None else x


class Iterates(Holder):
    def forward(self, x: Tensor) -> Tensor:
        for layer in self.body:
            x = layer(x)
        return x


class Indexes(Holder):
    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.body[1](x)


class Reversed(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        for layer in reversed(self):
            x = layer(x)
        return x


class Unpacks(Holder):
    def forward(self, x: Tensor) -> Tensor:
        first, *_ = self.body
        return first(x) + self.body(x)


NOT_WHOLE = "kept apart: their Sequential is not seen to be called only as a whole"
CONTAINERS = {
    "root": (lambda: nn.Sequential(*layers(), *layers()), 2, ""),
    "nested": (lambda: Holder(nn.Sequential(nn.Sequential(*layers()), nn.Sequential(*layers()))), 2, ""),
    "parallel": (lambda: nn.DataParallel(nn.Sequential(*layers())), 1, ""),
    "iterated": (lambda: Iterates(nn.Sequential(*layers())), 0, NOT_WHOLE),
    "indexed": (lambda: Indexes(nn.Sequential(*layers())), 0, NOT_WHOLE),
    "unpacked": (lambda: Unpacks(nn.Sequential(*layers())), 0, NOT_WHOLE),
    "iterated outside": (lambda: Iterates(nn.Sequential(nn.Sequential(*layers()))), 1, ""),
    "own forward": (lambda: Reversed(*layers()[::-1]), 0, ""),
    "list": (lambda: Iterates(nn.ModuleList(layers())), 0, ""),
    "pool between": (
        lambda: nn.Sequential(nn.BatchNorm2d(4), nn.MaxPool2d(1), nn.ReLU()),
        0,
        "kept apart: its batch norm is not called right before it",
    ),
}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_containers(kind: str) -> None:
    make, fused, reason = CONTAINERS[kind]
    original, x = make(), torch.randn(3, 4, 5, 5)
    model, report = operated(original, example_input=x)
    assert len(report.in_batch_norms) == fused
    assert {site.reason for site in report.sites} == {reason}
    open_caps(model, report)
    assert_equal_in_training_and_eval(original, model, x)
    kept = {key for key in model.state_dict() if not key.endswith(".cap")}
    assert kept == set(original.state_dict())


def test_a_sequential_that_no_code_is_seen_to_call() -> None:
    class Hidden(Holder):
        def forward(self, x: Tensor) -> Tensor:
            (name,) = self._modules
            return self.get_submodule(name)(x)  # type: ignore[no-any-return]

    _, report = operated(Hidden(nn.Sequential(*layers())))
    assert report.sites[0].reason == NOT_WHOLE
