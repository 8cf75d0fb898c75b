"""A network with the paper's added dense layer, the head, before its output."""

from __future__ import annotations

from torch import Tensor, nn


class HeadedNetwork(nn.Module):
    """``output(activation(head(body(x))))``: a body with ReLUs, and a given activation after the head (Figure 10).

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
