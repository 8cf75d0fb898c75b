"""What the caps do to the inputs of a test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dreluop.adaptive.attacks.checks import frozen
from dreluop.caps.inspection import cap_summary
from dreluop.caps.statistics import capped_layers, is_capped, watched
from dreluop.functional import saturation


@dataclass(frozen=True)
class CapFacts:
    """Of a model with caps, over inputs.

    Attributes:
        mean, smallest, largest: of all caps.
        live_units: capped units per input that lie between 0 and their cap; the others pass no gradient.
        no_live: share of the inputs of which no unit is live in some layer.
        cap_over_std: median of cap / std(x) in the layer where it is smallest; below 0.1 the layer is a step function.
    """

    mean: float
    smallest: float
    largest: float
    live_units: float
    no_live: float
    cap_over_std: float


def cap_facts(model: nn.Module, x: Tensor, batch_size: int) -> CapFacts | None:
    """None for a model without capped modules."""
    if not has_caps(model):
        return None
    named = capped_layers(model)
    caps = list({id(layer.cap): layer.cap for layer in named.values()}.values())
    live = torch.zeros((), dtype=torch.float64)

    def count(name: str, layer: Any, before: Tensor) -> None:
        live.add_(saturation(before, layer.cap, layer.dim).inside.sum().cpu())

    batches = x.split(batch_size)
    with frozen(model), torch.no_grad(), watched(named, count):
        for batch in batches:
            model(batch)
    layers = cap_summary(model, batches, progress=False).layers
    values = torch.cat([cap.detach().flatten() for cap in caps])
    return CapFacts(
        mean=float(values.mean()),
        smallest=float(values.min()),
        largest=float(values.max()),
        live_units=float(live) / len(x),
        no_live=max(layer.no_live for layer in layers),
        cap_over_std=min(layer.cap_over_std for layer in layers),
    )


def has_caps(model: nn.Module) -> bool:
    """Whether there are capped modules."""
    return any(map(is_capped, model.modules()))
