"""What a run neither sees nor may change."""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor

from dreluop.surgery import replace_activations
from tests.surgery.models import OneCall


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
        boxes = torchvision.ops.clip_boxes_to_image(self.linear(x), (2, 2))
        return self.act(boxes)


def test_the_line_of_a_package_whose_name_begins_like_torchs() -> None:
    report = replace_activations(Clipping(), example_input=torch.randn(3, 4))
    assert {one.line.split(":")[0] for one in report.remaining} == {"boxes.py"}
