"""The paper's dense network: two hidden layers, one added dense layer (the head) before the output."""

from __future__ import annotations

import torch
from torch import nn

from dreluop import DReLU
from studies.drelu_paper.models.headed import HeadedNetwork

INPUTS = 784
HIDDEN = 256
HEAD = 128
CLASSES = 10


class DenseNetwork(HeadedNetwork):
    """784-256-256-[128]-10 with ReLU in the body and a given activation after the head (section 5 of the paper).

    Args:
        activation: the head's.
        inputs: numbers per sample; samples of any shape are flattened.
        head: width of the added layer.
        classes: number of logits.
    """

    def __init__(self, activation: nn.Module, inputs: int = INPUTS, head: int = HEAD, classes: int = CLASSES) -> None:
        body = nn.Sequential(nn.Flatten(), nn.Linear(inputs, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU())
        super().__init__(body, HIDDEN, head, activation, classes)


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
