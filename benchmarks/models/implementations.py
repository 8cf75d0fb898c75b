"""The networks with the activations that are compared; all start from the same weights and, but for ReLU, caps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

import dreluop
from benchmarks.harness import implementations as c
from benchmarks.models.networks import NETWORKS
from dreluop._internal.cap_state import LearnedCap
from dreluop.caps.statistics import capped_layers
from dreluop.surgery import insert_head, replace_activations

FULL = "full"  # every activation replaced
HEAD = "head"  # only a dense layer with the activation put before the output, as in section 5 of the paper
VARIANTS = (FULL, HEAD)

RELU = "relu"  # the network as it is, in place where it is
OURS = c.OURS.name  # out of platform, sums apart
IN_PLACE = "dreluop, in place"  # where the original is in place
FUSED = "dreluop, fused"  # in place likewise, and residual sums in the same pass: what replace_activations does
FUSED_MASK = "dreluop, fused, packed mask"
BATCH_NORM = "dreluop, batch norm"  # and batch norms with the activations and sums behind them in one operator
# The activation by standard operators, out of platform.
PLAIN: dict[str, c.Activation] = {c.RELU_MINIMUM.name: c.relu_minimum, c.CLAMP.name: c.clamp_tensor}
IMPLEMENTATIONS = (RELU, *PLAIN, OURS, IN_PLACE, FUSED, FUSED_MASK, BATCH_NORM)

CAP = 2.0  # where caps start; batch normalization has made unit variance of what they cap
BALANCER = 1e-4
SEED = 0


class PlainDReLU(nn.Module):
    """A D-ReLU by a function of ``benchmarks.harness.implementations``, with the cap and dimension of one of ours."""

    def __init__(self, layer: dreluop.DReLU, function: c.Activation) -> None:
        super().__init__()
        self.cap, self.dim, self.function = layer.cap, layer.dim, function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.cap, self.dim)


def build(network: str, variant: str, implementation: str) -> nn.Module:
    """A network on the CPU, in train mode; its weights depend on nothing but network and variant.

    Raises:
        ValueError: one of the three is unknown.
    """
    for name, value, known in (
        ("network", network, tuple(NETWORKS)),
        ("variant", variant, VARIANTS),
        ("implementation", implementation, IMPLEMENTATIONS),
    ):
        if value not in known:
            raise ValueError(f"{name}: got {value!r}; expected one of {', '.join(map(repr, known))}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = NETWORKS[network].build()
        headed = insert_head(model, init=CAP) if variant == HEAD else None
    if implementation == RELU:
        if headed is not None:
            headed.activation = nn.ReLU()
        return model
    if headed is None:
        fuses: dict[str, bool | Literal["batch_norm"]] = {FUSED: True, FUSED_MASK: True, BATCH_NORM: "batch_norm"}
        replace_activations(model, init=CAP, fuse=fuses.get(implementation, False))
    for name, layer in capped_layers(model).items():
        if implementation in PLAIN:
            model.set_submodule(name, PlainDReLU(layer, PLAIN[implementation]))
        elif implementation == OURS:
            layer.inplace = False
        elif implementation == FUSED_MASK:
            layer.save = "mask"
    return model


def caps(model: nn.Module) -> list[nn.Parameter]:
    """The caps of an implementation's network; none in one with plain ReLUs."""
    return [layer.cap for layer in model.modules() if isinstance(layer, PlainDReLU | LearnedCap)]


def penalty(model: nn.Module, implementation: str) -> Callable[[], Tensor] | None:
    """What computes the penalty on the caps; None for plain ReLUs."""
    found = caps(model)
    if not found:
        return None
    if implementation in PLAIN:
        return lambda: BALANCER * torch.cat([cap.flatten() for cap in found]).square().sum()
    return lambda: dreluop.cap_penalty(found, BALANCER)
