"""Networks around batch norms, and what the tests ask of them after surgery."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from dreluop.surgery import Report, replace_activations


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.flag = True
        self.conv, self.other = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.bn, self.act = nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.norms = nn.ModuleList([nn.BatchNorm2d(4)])
        self.drop = nn.Identity()


def with_forward(forward: Any) -> nn.Module:
    torch.manual_seed(0)
    made: nn.Module = type("Made", (Parts,), {"forward": forward, "__module__": __name__})()
    if "act" not in type(made).forward.__code__.co_names:
        del made.act
    return made


def operated(original: nn.Module, **options: Any) -> tuple[nn.Module, Report]:
    model = copy.deepcopy(original)
    return model, replace_activations(model, fuse="batch_norm", **options)


def assert_equal_in_training_and_eval(original: nn.Module, model: nn.Module, x: Tensor, gradients: bool = True) -> None:
    """Outputs, gradients and running statistics, in fp64."""
    original, model = copy.deepcopy(original).double(), copy.deepcopy(model).double()
    for training in (True, False):
        results = []
        for one in (original.train(training), model.train(training)):
            given = x.double().clone().requires_grad_()
            with torch.set_grad_enabled(gradients):
                y = one(given)
            results.append([y, *(torch.autograd.grad(y.square().sum(), given, retain_graph=True) if gradients else ())])
            if gradients:
                y.square().sum().backward()
        weights = dict(model.named_parameters())
        results[0] += [value.grad for value in original.parameters() if value.grad is not None]
        results[1] += [weights[name].grad for name, value in original.named_parameters() if value.grad is not None]
        results[0] += list(original.buffers())
        results[1] += list(model.buffers())
        for got, want in zip(*results[::-1], strict=True):
            torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


def layers(channels: int = 4) -> list[nn.Module]:
    return [nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels), nn.ReLU6(inplace=True)]


class Users(nn.Module):
    """In code and in a Sequential, with a sum, a fixed bound, and an activation that is left."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*layers())
        self.conv1, self.bn1 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x
        out = self.relu(out)
        return self.last(self.relu(out.mean((2, 3)) - 0.1))


def users(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    return operated(Users(), example_input=torch.randn(2, 4, 5, 5), **options)[0]
