"""Two small networks of digits, with an activation of choice, and their training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

import dreluop
from studies.drelu_paper.data import Split

# Makes the activation behind a layer of so many channels.
Activation = Callable[[int], nn.Module]
SIDE = 28
BATCH, RATE = 64, 1e-3


@dataclass(frozen=True)
class Recipe:
    """Epochs of Adam; with learned caps, the weight of their penalty."""

    epochs: int
    balancer: float = 0.0


class Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, channels_in: int, channels: int, stride: int, activation: Activation) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.norm1, self.activation1 = nn.BatchNorm2d(channels), activation(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2, self.activation2 = nn.BatchNorm2d(channels), activation(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.activation1(self.norm1(self.conv1(x)))))
        result: Tensor = self.activation2(y + self.shortcut(x))
        return result


def cnn(activation: Activation) -> nn.Sequential:
    """Convolutions of 16 and 32 channels with batch norm, and a dense layer of 128."""
    return nn.Sequential(
        nn.Unflatten(1, (1, SIDE, SIDE)),
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), activation(16), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), activation(32), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * (SIDE // 4) ** 2, 128), activation(128), nn.Linear(128, 10),
    )  # fmt: skip


def resnet(activation: Activation) -> nn.Sequential:
    """8 layers with weights in the main path: three residual blocks of 16, 32 and 64 channels."""
    return nn.Sequential(
        nn.Unflatten(1, (1, SIDE, SIDE)),
        nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), activation(16),
        Residual(16, 16, 1, activation), Residual(16, 32, 2, activation), Residual(32, 64, 2, activation),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


NETWORKS: dict[str, Callable[[Activation], nn.Sequential]] = {"CNN": cnn, "ResNet": resnet}


def trained(network: str, activation: Activation, recipe: Recipe, data: Split, seed: int) -> nn.Sequential:
    """A network in eval mode. The same seed gives the same network on one machine."""
    torch.manual_seed(seed)
    model = NETWORKS[network](activation)
    groups = dreluop.param_groups(model, RATE, 10 * RATE) if recipe.balancer else model.parameters()
    optimizer = torch.optim.Adam(groups)
    for _ in range(recipe.epochs):
        for batch in torch.randperm(len(data.y)).split(BATCH):
            loss = F.cross_entropy(model(data.x[batch]), data.y[batch])
            if recipe.balancer:
                loss = loss + dreluop.cap_penalty(model, recipe.balancer)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()
