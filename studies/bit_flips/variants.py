"""The protections that are compared: each makes of a trained network, and clean inputs, one to be hit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import dreluop
from dreluop import surgery
from dreluop.faults import ProtectedWeights, protect_weights
from studies.bit_flips.networks import Activation

RELU, RELU6, LEARNED = "ReLU", "ReLU6", "learned caps"
# How networks are trained.
ACTIVATIONS: dict[str, Activation] = {
    RELU: lambda _: nn.ReLU(),
    RELU6: lambda _: nn.ReLU6(),
    LEARNED: lambda channels: dreluop.DReLU(channels, init=10.0),
}


@dataclass(frozen=True)
class Subject:
    """What is hit and what is run: the network, and with it the copies of its weights."""

    model: nn.Module
    weights: ProtectedWeights | None = None

    @property
    def hit(self) -> nn.Module:
        return self.model if self.weights is None else nn.ModuleList([self.model, self.weights])

    def logits(self, x: Tensor) -> Tensor:
        if self.weights is not None:
            self.weights.repair(self.model)
        result: Tensor = self.model(x.to(next(self.model.parameters()).dtype)).float()
        return result


class FitReLU(nn.Module):
    """FitAct's smooth bound (Ghavami et al., 2022): ``max(0, x * sigmoid(k * (bound - x)))``, a bound per neuron."""

    cap: Tensor

    def __init__(self, bound: Tensor, slope: float = 8.0) -> None:
        super().__init__()
        self.register_buffer("cap", bound)
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x * torch.sigmoid(self.slope * (self.cap - x)))


def _fitted(model: nn.Module, clean: Tensor) -> Subject:
    """Every ReLU with the largest clean value of each of its neurons as the bound."""
    found: dict[str, Tensor] = {}
    handles = [
        module.register_forward_hook(lambda _, args, __, name=name: found.update({name: args[0].amax(0)}))
        for name, module in model.named_modules()
        if isinstance(module, nn.ReLU)
    ]
    with torch.no_grad():
        model(clean)
    for handle in handles:
        handle.remove()
    for name, bound in found.items():
        # The slope ends a little above the largest value, so that clean ones pass.
        model.set_submodule(name, FitReLU(1.2 * bound.clamp(min=1e-3) + 0.5))
    return Subject(model)


def _as_replaced(model: nn.Module, clean: Tensor) -> Subject:
    surgery.replace_activations(model, granularity="channel")
    surgery.calibrate_caps(model, [clean], quantile=0.99, progress=False)
    return Subject(model)


def _by_protect(**options: str) -> Callable[[nn.Module, Tensor], Subject]:
    def make(model: nn.Module, clean: Tensor) -> Subject:
        surgery.protect(model, [clean], progress=False, **options)  # type: ignore[arg-type]
        return Subject(model)

    return make


def _with_weights(model: nn.Module, clean: Tensor) -> Subject:
    surgery.protect(model, [clean], progress=False)
    return Subject(model, protect_weights(model))


@dataclass(frozen=True)
class Variant:
    """How the network is trained, and what is made of it then."""

    activation: str
    make: Callable[[nn.Module, Tensor], Subject] = lambda model, _: Subject(model)

    def of(self, model: nn.Module, clean: Tensor, dtype: torch.dtype) -> Subject:
        """A copy of a trained network of this dtype, protected."""
        return self.make(copy.deepcopy(model).to(dtype), clean.to(dtype))


VARIANTS = {
    RELU: Variant(RELU),
    RELU6: Variant(RELU6),
    LEARNED: Variant(LEARNED),
    "channel caps, 0.99 quantile": Variant(RELU, _as_replaced),
    "Ranger": Variant(RELU, _by_protect(above="cap", nan="propagate")),
    "FT-ClipAct": Variant(RELU, _by_protect(above="zero", nan="propagate")),
    "FitAct": Variant(RELU, _fitted),
    "protect": Variant(RELU, _by_protect()),
    "protect, protect_weights": Variant(RELU, _with_weights),
}
