"""The capped layers of a model, what comes into them, and what they make of it."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.utils.hooks import RemovableHandle

from dreluop._internal import checks, torch_private
from dreluop._internal.cap_state import LearnedCap
from dreluop._internal.interrupts import left_for_certain
from dreluop._internal.shapes import granularity_of
from dreluop.autograd.base import in_backward
from dreluop.batch_norm import _BatchNormDReLU
from dreluop.functional import saturation
from dreluop.modules import DReLU, SReLU
from dreluop.ops.composite import effective_cap, fused_sum

CappedLayer = DReLU | SReLU | _BatchNormDReLU


def is_compiled(model: nn.Module) -> bool:
    """Whether torch.compile made this module or one in it, or ``Module.compile`` was called on one."""
    # To ask torch._dynamo itself would import it, which takes seconds.
    dynamo = sys.modules.get("torch._dynamo")
    made = () if dynamo is None else (dynamo.OptimizedModule,)
    return any(isinstance(m, made) or getattr(m, "_compiled_call_impl", None) is not None for m in model.modules())


def is_capped(module: object) -> bool:
    """Whether it is a DReLU, an SReLU or a batch norm with caps."""
    return isinstance(module, LearnedCap | SReLU)


def capped_layers(model: nn.Module, learned: bool = False) -> dict[str, Any]:
    """The capped layers by name; with ``learned``, those whose cap is.

    Raises:
        TypeError: model is no module.
        ValueError: there is none, or one is a LazyDReLU without a shape yet.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}; expected a torch.nn.Module")
    kinds = (LearnedCap,) if learned else (LearnedCap, SReLU)
    layers: dict[str, Any] = {name: m for name, m in model.named_modules() if isinstance(m, kinds)}
    if not layers:
        names = "DReLU" if learned else "DReLU or SReLU"
        raise ValueError(f"model: got a {type(model).__name__} without any {names}; expected at least one")
    for name, layer in layers.items():
        if isinstance(layer.cap, UninitializedParameter):
            raise ValueError(f"model: its LazyDReLU {name!r} has no shape yet; run the model once before")
    return layers


def is_measurable(what: str) -> bool:
    """Whether a forward that runs now is one to count and to measure.

    It is not inside a backward pass, where a checkpoint recomputes it, and not while it is traced or runs on fake
    tensors, which have no values.

    Raises:
        RuntimeError: it runs under torch.vmap, where elements of several samples look like those of one, or under
            torch.func.functionalize, where numbers cannot be read.
    """
    if in_backward():
        return False
    if torch_private.is_traced_or_fake():
        return False
    transforms = torch_private.transforms()
    if torch_private.Transform.Vmap in transforms:
        raise RuntimeError(f"{what}: not inside torch.vmap; call the model on the whole batch, or measure without it")
    if torch_private.Transform.Functionalize in transforms:
        raise RuntimeError(f"{what}: not inside torch.func.functionalize; measure without it")
    return True


def _call(hook: Callable[..., None], *args: Any) -> None:
    hook(*args)


_call_outside_graphs = torch_private.disable_dynamo(_call)


def _call_anywhere(hook: Callable[..., None], *args: Any) -> None:
    # In eager mode without the disabled function, which imports the compiler: that takes seconds.
    (_call_outside_graphs if torch.compiler.is_compiling() else _call)(hook, *args)


def outside_graphs(hook: Callable[..., None]) -> Callable[..., None]:
    """A hook that a compiled caller calls between two graphs, as what it asks for is not known to the compiler.

    A deep copy of a module copies the object that a method belongs to, as it does for the method alone.
    """
    return functools.partial(_call_anywhere, hook)


def pre_activation(layer: CappedLayer, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    """What a call of a capped layer caps: its x, normalized or plus a bias, plus a residual. Detached."""
    given = {**dict(zip(("x", "residual"), args, strict=False)), **kwargs}
    if isinstance(layer, _BatchNormDReLU):
        return layer.pre_activation(given["x"], given.get("residual"))
    x, residual, bias = given["x"].detach(), given.get("residual"), given.get("bias")
    if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype):
        x, residual = x + residual.detach(), None
    result: Tensor = fused_sum(
        x, layer.dim, None if bias is None else bias.detach(), None if residual is None else residual.detach()
    )
    return result


def dropped_by_cap(layer: CappedLayer, x: Tensor) -> Tensor:
    """Where a capped layer drops what comes in, by ``above="zero"`` and ``nan="zero"``: bool, of x's shape."""
    # As the activation compares it: in x's dtype.
    cap = effective_cap(layer.cap.detach(), x, layer.dim)
    above = x > cap if layer.above == "zero" else torch.zeros_like(x, dtype=torch.bool)
    return above | (x.isnan() | cap.isnan()) if layer.nan == "zero" else above


def watched(layers: dict[str, Any], look: Callable[[str, Any, Tensor], None]) -> AbstractContextManager[None]:
    """Call ``look(name, layer, pre-activation)`` before every call of a layer, within the context."""
    handles: list[RemovableHandle] = []

    def hook(name: str) -> Callable[..., None]:
        def before_call(layer: Any, args: Any, kwargs: Any) -> None:
            if is_measurable("model"):
                look(name, layer, pre_activation(layer, args, kwargs))

        return outside_graphs(before_call)

    def enter() -> None:
        for name, layer in layers.items():
            handles.append(layer.register_forward_pre_hook(hook(name), with_kwargs=True))

    def leave() -> None:
        for handle in handles:
            handle.remove()

    return left_for_certain(enter, leave)


def row_per_cap(layer: CappedLayer, x: Tensor) -> Tensor:
    """x as (caps, elements that share the cap)."""
    kind = granularity_of(x.shape, layer.cap.shape, layer.dim)
    if kind == "layer":
        return x.reshape(1, -1)
    return x.movedim(layer.dim, 0).reshape(layer.cap.shape[0], -1) if kind == "channel" else x.flatten(1).T


@dataclass(frozen=True)
class LayerStatistics:
    """A capped layer and where its elements lay.

    Attributes:
        granularity: ``"layer"``, ``"channel"`` or ``"neuron"``.
        caps: their number; cap_min, cap_median, cap_max: their values.
        off, inside, capped: shares of the elements with x <= 0, 0 < x < cap, x >= cap; they add up to 1.
        no_live: share of the samples of which no element is inside: their gradient through this layer is exactly zero.
        cap_over_std: median over the caps of cap / std(x), x being the elements that share the cap.

        The last five are NaN where nothing was measured.
    """

    name: str
    granularity: str
    caps: int
    cap_min: float
    cap_median: float
    cap_max: float
    off: float = float("nan")
    inside: float = float("nan")
    capped: float = float("nan")
    no_live: float = float("nan")
    cap_over_std: float = float("nan")


class LayerSums:
    """Adds up batches of one layer. Everything stays on the layer's device until ``statistics``."""

    def __init__(self, name: str, layer: CappedLayer) -> None:
        self.name, self.layer = name, layer
        self._parts: Tensor | None = None  # off, inside, capped, samples, samples without a live unit
        self._count = 0
        self._mean: Tensor | float = 0.0
        self._squares: Tensor | float = 0.0
        self._granularity = ""

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        layer = self.layer
        # A number is one sample.
        x = x.reshape(1) if x.ndim == 0 else x
        self._granularity = granularity_of(x.shape, layer.cap.shape, layer.dim)
        where = saturation(x, layer.cap, layer.dim)
        parts = torch.stack([where.off.sum(), where.inside.sum(), where.capped.sum(), (~where.has_gradient).sum()])
        parts = torch.cat([parts, parts.new_tensor([x.shape[0]])])
        self._parts = parts if self._parts is None else self._parts + parts
        if x.numel() == 0:
            return
        # Chan, Golub and LeVeque: means and squares of two groups put together.
        kept = () if self._granularity == "layer" else (layer.dim % x.ndim,)
        dims = [0] if self._granularity == "neuron" else [d for d in range(x.ndim) if d not in kept]
        values = x if x.dtype is torch.float64 else x.float()
        # One dimension more, as torch reduces all of them where none is named (a cap for each element of a vector).
        variance, mean = torch.var_mean(values.unsqueeze(-1), [*dims, x.ndim], correction=0)
        number = x.numel() // mean.numel()
        total = self._count + number
        delta = mean - self._mean
        self._squares = self._squares + variance * number + delta.square() * (self._count * number / total)
        self._mean = self._mean + delta * (number / total)
        self._count = total

    def statistics(self) -> LayerStatistics:
        if place := checks.place_without_values(self.layer.cap):
            raise ValueError(f"model: the cap of {self.name!r} is {place}, where it has no value")
        cap = self.layer.cap.detach().flatten().double().cpu()
        granularity = self._granularity or ("layer" if cap.numel() == 1 else _guess(self.layer))
        facts = (self.name, granularity, cap.numel(), cap.min().item(), cap.median().item(), cap.max().item())
        if self._parts is None or not isinstance(self._squares, Tensor):
            return LayerStatistics(*facts)
        off, inside, capped, dead, samples = self._parts.tolist()
        elements = max(off + inside + capped, 1)
        std = (self._squares / self._count).sqrt().flatten().double().cpu()
        # A cap of 0 on a constant x tells nothing.
        ratio = (cap / std).nanmedian().item()
        shares = (off / elements, inside / elements, capped / elements, dead / max(samples, 1))
        return LayerStatistics(*facts, *shares, ratio)


def _guess(layer: CappedLayer) -> str:
    return "channel" if layer.cap.ndim == 1 else "neuron"


HEADER = ("layer", "caps per", "caps", "min", "median", "max", "off", "inside", "capped", "no live unit", "cap / std")


def table_row(statistics: LayerStatistics) -> tuple[str, ...]:
    s = statistics
    numbers = (f"{value:.4g}" for value in (s.cap_min, s.cap_median, s.cap_max))
    shares = ("-" if math.isnan(value) else f"{value:.1%}" for value in (s.off, s.inside, s.capped, s.no_live))
    ratio = "-" if math.isnan(s.cap_over_std) else f"{s.cap_over_std:.3g}"
    return s.name or "(model)", s.granularity, str(s.caps), *numbers, *shares, ratio
