"""The paper's two small networks: a body with ReLUs, and an added dense layer, the head, before the output."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dreluop import DReLU

HIDDEN = 256
HEAD = 128
# The paper does not say how wide its shallow network is.
CHANNELS = (16, 32)


class HeadedNetwork(nn.Module):
    """``output(activation(head(body(x))))`` (Figure 10).

    Attributes:
        body: what comes before the added layer; gives (N, features).
        head: the added layer; its output is the activation's pre-activation, shape (N, head).
        activation: the head's activation.
        output: the layer that gives the logits, shape (N, classes).
    """

    def __init__(self, body: nn.Module, features: int, head: int, activation: nn.Module, classes: int) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(features, head)
        self.activation = activation
        self.output = nn.Linear(head, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.output(self.activation(self.head(self.body(x))))
        return logits


class DenseNetwork(HeadedNetwork):
    """inputs-256-256-[head]-classes with ReLU in the body (section 5 of the paper); samples are flattened."""

    def __init__(self, activation: nn.Module, inputs: int = 784, head: int = HEAD, classes: int = 10) -> None:
        body = nn.Sequential(nn.Flatten(), nn.Linear(inputs, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU())
        super().__init__(body, HIDDEN, head, activation, classes)


def dense_relu(seed: int) -> DenseNetwork:
    """With a ReLU head; its weights depend on seed only. Leaves torch's random state alone."""
    return _seeded(nn.ReLU(), seed)


def dense_drelu(seed: int, init: float = 100.0) -> DenseNetwork:
    """With a D-ReLU head, one cap per neuron, ``init`` at first; the same weights as ``dense_relu(seed)``."""
    return _seeded(DReLU(num_parameters=HEAD, init=init), seed)


def _seeded(activation: nn.Module, seed: int) -> DenseNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DenseNetwork(activation)


def convolutional_body(shape: tuple[int, int, int]) -> tuple[nn.Sequential, int]:
    """Two 3x3 convolutions with ReLU, each followed by 2x2 max pooling; the layers, and the number of features."""
    channels, height, width = shape
    if min(height, width) < 4:
        raise ValueError(f"shape: got {shape}; two poolings need images of at least 4x4")
    first, second = CHANNELS
    layers = nn.Sequential(
        nn.Conv2d(channels, first, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(first, second, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
    )
    return layers, second * (height // 4) * (width // 4)
