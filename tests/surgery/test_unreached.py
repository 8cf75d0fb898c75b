"""What a run neither sees nor may change."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dreluop.surgery import replace_activations
from tests.support.optional import torchvision_or_skip
from tests.surgery.models import OneCall


class Decoding(OneCall):
    """Methods that cannot be changed and that forward does not call."""

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.linear(x))


class Cached(Decoding):
    @functools.lru_cache  # noqa: B019 (the case)
    def decode(self, x: Tensor) -> Tensor:
        return functional.relu(x)


class Static(Decoding):
    @staticmethod
    def decode(x: Tensor) -> Tensor:
        return functional.relu(x)


@pytest.mark.parametrize("kind", [Cached, Static])
def test_code_that_cannot_be_changed_is_named_though_the_run_does_not_reach_it(kind: Any) -> None:
    x = torch.randn(3, 4)
    with_example = kind()
    report = replace_activations(with_example, example_input=x)
    assert ["decode" in one.reason for one in report.remaining] == [True]
    report.verify(with_example, x)
    assert ["decode" in one.reason for one in report.remaining] == [True]
    assert ["decode" in one.reason for one in replace_activations(kind()).remaining] == [True]


class Renormalized(OneCall):
    """Its forward changes its own weights, as networks with a max-norm constraint do."""

    def forward(self, x: Tensor) -> Tensor:
        self.linear.weight.data = torch.renorm(self.linear.weight.data, 2, 0, 0.1)
        self.linear.bias.data.mul_(0.5)
        return self.act(self.linear(x))


def test_a_run_does_not_change_weights() -> None:
    model = Renormalized()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    report = replace_activations(model, example_input=torch.randn(3, 4))
    report.verify(model, torch.randn(3, 4))
    assert all(map(torch.equal, before, model.parameters()))


class Clipping(OneCall):
    def forward(self, x: Tensor) -> Tensor:
        boxes = torchvision_or_skip("torchvision.ops").clip_boxes_to_image(self.linear(x), (2, 2))
        return self.act(boxes)


def test_the_line_of_a_package_whose_name_begins_like_torchs() -> None:
    report = replace_activations(Clipping(), example_input=torch.randn(3, 4))
    assert {one.line.split(":")[0] for one in report.remaining} == {"boxes.py"}


class State(OneCall):
    """A result kept as an attribute or buffer is no parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("state", torch.zeros(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        self.state = self.linear(x)
        self.result = self.state + 1
        return functional.relu(self.state) + functional.relu(self.result)


def test_results_that_a_module_keeps_are_no_parameters() -> None:
    model = State()
    with torch.no_grad():
        model(torch.randn(3, 4))
    assert len(replace_activations(model, granularity="layer").replaced) == 2
