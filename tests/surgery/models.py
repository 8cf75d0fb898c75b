"""Small networks that call ReLU in every way there is."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (as users write it)
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """One shared ReLU, called at three places with two channel counts; the last after a residual sum."""

    def __init__(self, channels: int, inside: int, inplace: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, inside, 1)
        self.conv2 = nn.Conv2d(inside, inside, 3, padding=1)
        self.conv3 = nn.Conv2d(inside, channels, 1)
        self.bn3 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=inplace)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.conv1(x))
        out = self.relu(self.conv2(out))
        out = self.bn3(self.conv3(out))
        out += x
        return self.relu(out)


class Functional(nn.Module):
    """Functions and methods, in place and not."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(7))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.convs[0](x))
        x = F.relu(self.convs[1](x), inplace=True)
        x = torch.relu(self.convs[2](x))
        x = self.convs[3](x).relu()
        x = self.convs[4](x)
        x.relu_()
        x = F.relu6(self.convs[5](x))
        return F.hardtanh(self.convs[6](x), 0.0, 0.25)


class TwoModes(nn.Module):
    """Dropout by function, and a head that runs in training only, before the main one."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.aux, self.main = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        h = F.relu(self.body(x))
        aux = F.relu(self.aux(h)) if self.training else None
        h = F.dropout(h, 0.5, training=self.training)
        y = F.relu(self.main(h))
        return (y, aux) if self.training else y


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.act = nn.Linear(5, 5), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.linear(x))


class SharedBlock(nn.Module):
    """Calls one block three times: three sites."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Inner()

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = self.block(x)
        return x


class DataDependent(nn.Module):
    """torch.fx cannot trace it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.act, self.scale = Inner(), nn.ReLU(), nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.scale(self.inner(x)))
        return F.relu(-x) if x.sum() < 0 else x


class OptionalArgument(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 5)

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        x = self.linear(x)
        if shift is not None:
            x = x + shift
        return F.relu(x)


class Users(nn.Module):
    """Nested containers, one activation in several places, a functional call, a Hardtanh."""

    def __init__(self) -> None:
        super().__init__()
        act = nn.ReLU()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), act)
        self.stages = nn.ModuleDict(
            {
                "low": nn.Sequential(
                    ResidualBlock(8, 4, True), nn.Sequential(nn.Conv2d(8, 6, 1), act, nn.Conv2d(6, 4, 1), act)
                ),
                "high": Functional(),
            }
        )
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(4 * 36, 10), nn.Hardtanh(0, 2), nn.Linear(10, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in self.stages.values():
            x = stage(x)
        result: Tensor = self.classifier(x)
        return result


class Settings:
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def __repr__(self) -> str:
        return f"Settings({self.seen})"

    scale = 2.0


class OneCall(nn.Module):
    """One functional call, whatever the forward does else."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.alpha, self.flag, self.times, self.probability = 0.5, False, 2, 0.3
        self.log: list[Any] = []
        self.cache: dict[str, Any] = {"shapes": []}
        self.settings = Settings()
        self.act = F.relu
        self.shift = torch.ones(4)
        self.count = 0
        self.steps: Tensor
        self.register_buffer("steps", torch.zeros(()))
