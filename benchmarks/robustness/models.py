"""The paper's dense network: two hidden layers, one added dense layer (the head) before the output."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dreluop import DReLU

INPUTS = 784
HIDDEN = 256
HEAD = 128
CLASSES = 10


class DenseNetwork(nn.Module):
    """784-256-256-[128]-10 with ReLU in the body and a given activation after the head (section 5 of the paper).

    Attributes:
        body: the hidden layers.
        head: the added layer; its output is the activation's pre-activation, shape (N, 128).
        activation: the head's activation.
        output: the layer that gives the logits, shape (N, 10).
    """

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Flatten(), nn.Linear(INPUTS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU()
        )
        self.head = nn.Linear(HIDDEN, HEAD)
        self.activation = activation
        self.output = nn.Linear(HEAD, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.output(self.activation(self.head(self.body(x))))
        return logits


def dense_relu(seed: int) -> DenseNetwork:
    """The network with a ReLU head; its weights depend on seed only. Leaves torch's random state alone."""
    return _seeded(nn.ReLU(), seed)


def dense_drelu(seed: int, init: float = 100.0) -> DenseNetwork:
    """The network with a D-ReLU head, one cap per neuron; the same weights as ``dense_relu(seed)``.

    Args:
        seed: of the weights.
        init: every cap's initial value; 100 is the paper's.
    """
    return _seeded(DReLU(num_parameters=HEAD, init=init), seed)


def _seeded(activation: nn.Module, seed: int) -> DenseNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DenseNetwork(activation)
