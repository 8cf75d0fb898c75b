"""What the code does not settle is not taken for a layer before an activation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dreluop.surgery import replace_activations


class Flow(nn.Module):
    """What ``get`` gives has 8 channels, and another layer with one or four stands near it in the code."""

    steps = 0

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.one, self.four, self.eight = nn.Linear(4, 1), nn.Linear(4, 4), nn.Linear(4, 8)
        self.layers = nn.ModuleList([self.eight, nn.Linear(8, 1)])
        self.act = nn.ReLU()


class Try(Flow):
    def forward(self, x: Tensor) -> Tensor:
        try:
            y = self.eight(x)
        except RuntimeError:
            y = self.one(x)
        return self.act(y)


class Match(Flow):
    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        match self.kind:
            case "eight":
                y = self.eight(x)
        return self.act(y)


class While(Flow):
    def forward(self, x: Tensor) -> Tensor:
        y, steps = self.eight(x), self.steps
        while steps > 0:
            y, steps = self.one(x), steps - 1
        return self.act(y)


class For(Flow):
    def forward(self, x: Tensor) -> Tensor:
        y = self.eight(x)
        for _ in range(self.steps):
            y = self.one(x)
        return self.act(y)


class ForElse(Flow):
    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            y = self.eight(x)
            break
        else:
            y = self.one(x)
        return self.act(y)


class LoopVariable(Flow):
    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        for y in [self.eight(x)][:2]:
            x = self.act(y)
        return x


class Break(Flow):
    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
            if x.shape[1] == 8:
                break
        return self.act(x)


class Continue(Flow):
    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            if x.shape[1] == 8:
                continue
            x = layer(x)
        return self.act(x)


class Comprehension(Flow):
    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        _ = [y := self.eight(x) for _ in range(2)]
        return self.act(y)


class With(Flow):
    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        x = x + y
        with Given(self.eight(x)) as y:
            return self.act(y)


class Given:
    def __init__(self, value: Tensor) -> None:
        self.value = value

    def __enter__(self) -> Tensor:
        return self.value

    def __exit__(self, *_: object) -> None:
        pass


class Starred(Flow):
    def second(self, _: Tensor, second: Tensor, third: Tensor) -> Tensor:
        return self.act(second) + third.mean()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(*(x, self.eight(x)), self.one(x))


class Static(Flow):
    @staticmethod
    def second(_: Tensor, second: Tensor) -> Tensor:
        return second

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.second(self.one(x), self.eight(x)))


@pytest.mark.parametrize(
    "kind", [Try, Match, While, For, ForElse, LoopVariable, Break, Continue, Comprehension, With, Starred]
)
def test_channels_that_the_code_does_not_settle_need_an_example(kind: Any) -> None:
    with pytest.raises(ValueError, match="does not tell how many channels these sites get: 'act'"):
        replace_activations(kind("eight"))
    (site,) = replace_activations(kind("eight"), example_input=torch.randn(2, 4)).replaced
    assert site.cap_shape == (8,)


def test_the_first_argument_of_a_static_method_is_no_self() -> None:
    (site,) = replace_activations(Static("")).replaced
    assert site.cap_shape == (8,)
