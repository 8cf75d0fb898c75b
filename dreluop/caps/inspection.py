"""Setting, freezing and looking at the caps of a model."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dreluop._internal import cap_state, checks
from dreluop._internal.text_table import text_table
from dreluop.caps.batches import Forward, check_loader, run_over
from dreluop.caps.statistics import HEADER, LayerStatistics, LayerSums, capped_layers, table_row, watched
from dreluop.modules import DReLU

Value = float | Tensor


def set_caps(model: nn.Module, value: Value | Mapping[str, Value], *, select: str | Iterable[str] = "*") -> list[str]:
    """Set the caps of the model's DReLU modules; ``math.inf`` makes them plain ReLUs.

    Args:
        value: a number > 0, a tensor of the caps' shape with values > 0, or these by name of the layer.
        select: a pattern or patterns of ``fnmatch`` for the names of the layers; not with a mapping.

    Returns:
        The names of the layers that were set.

    Raises:
        TypeError, ValueError: model has no DReLU, a name or pattern fits none, a value is no number or not > 0, or its
            shape is not the caps', their dtype rounds it to 0 or infinity, layers that share caps get different
            ones, or caps cannot be set: made by a hook (``torch.nn.utils.prune``) or by a parametrization whose
            ``right_inverse`` is missing or gives another value, in FullyShardedDataParallel, or on the meta device.
            Nothing is set then.
    """
    layers: dict[str, DReLU] = capped_layers(model, learned=True)
    if isinstance(value, Mapping):
        for name in value:
            if name not in layers:
                raise ValueError(f"value: got the name {name!r}; expected one of {', '.join(map(repr, layers))}")
        values = dict(value)
    else:
        values = dict.fromkeys(_selected(layers, select), value)
    tensors = {name: _as_caps(name, layers[name], given) for name, given in values.items()}
    chosen = {name: layers[name] for name in tensors}
    cap_state.settle(model)
    cap_state.check_writable(chosen)
    _check_shared(chosen, tensors)
    cap_state.write(chosen, tensors)
    return list(tensors)


def freeze_caps(model: nn.Module, frozen: bool = True, *, select: str | Iterable[str] = "*") -> list[str]:
    """Stop, or with ``frozen=False`` resume, the training of caps (``requires_grad``).

    For a parametrized cap this applies to every parameter that the cap is made of.

    Args:
        select: as in ``set_caps``.

    Returns:
        The names of the layers.

    Raises:
        TypeError, ValueError: model has no DReLU, frozen is no bool, a pattern fits no layer, or a cap is made by a
            hook or is in FullyShardedDataParallel. Nothing is changed then.
    """
    frozen = checks.flag("frozen", frozen)
    layers: dict[str, DReLU] = capped_layers(model, learned=True)
    names = _selected(layers, select)
    cap_state.settle(model)
    cap_state.set_trainable({name: layers[name] for name in names}, not frozen)
    return names


def _selected(layers: Mapping[str, Any], select: Any) -> list[str]:
    patterns: list[Any] = [None]
    if isinstance(select, Iterable):
        patterns = [select] if isinstance(select, str) else list(select)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"select: got {type(select).__name__}; expected a pattern or patterns")
        if not fnmatch.filter(layers, pattern):
            raise ValueError(f"select: {pattern!r} matches none of {', '.join(map(repr, layers))}")
    return [name for name in layers if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


def _as_caps(name: str, layer: DReLU, value: Any) -> Tensor:
    what = cap_state.of_layer("value", name)
    if isinstance(value, Tensor):
        tensor = checks.float_tensor(what, value).detach()
        if tensor.shape != layer.cap.shape and tensor.numel() != 1:
            raise ValueError(f"{what}: got shape {tuple(tensor.shape)}; expected the caps', {tuple(layer.cap.shape)}")
    elif checks.is_number(value):
        number = checks.number(what, value)
        tensor = torch.tensor(number, dtype=torch.float64, device="cpu")
    else:
        raise TypeError(f"{what}: got {type(value).__name__}; expected a number or a tensor")
    if place := checks.place_without_values(tensor):
        raise ValueError(f"{what}: got one {place}, where it has no numbers; expected numbers")
    if bool((refused := ~(tensor > 0)).any()):
        first = tensor[refused].flatten()[0].item()
        raise ValueError(f"{what}: got {first:g}; expected only numbers > 0 (a cap <= 0 gives 0 and never learns)")
    return in_dtype_of(layer.cap, tensor, what)


def in_dtype_of(cap: Tensor, values: Tensor, what: str) -> Tensor:
    """Values > 0 as a cap's dtype rounds them.

    Raises:
        ValueError: one becomes 0 or infinite there.
    """
    rounded = values.to(cap.dtype)
    lost = (rounded == 0) | (rounded.isinf() & ~values.isinf())
    if bool(lost.any()):
        worst = values.expand(lost.shape)[lost].flatten()[0].item()
        raise ValueError(
            f"{what}: got {worst:g}, which {cap.dtype} rounds to {rounded[lost].flatten()[0].item():g}; expected "
            "numbers in its range"
        )
    return rounded


def _check_shared(layers: Mapping[str, DReLU], tensors: Mapping[str, Tensor]) -> None:
    first: dict[tuple[int, ...], str] = {}
    for name, tensor in tensors.items():
        other = first.setdefault(cap_state.key(layers[name]), name)
        if not torch.equal(*torch.broadcast_tensors(tensor, tensors[other].to(tensor.device))):
            raise ValueError(f"value of {name!r}: got another than for {other!r}, which shares its caps")


@dataclass(frozen=True)
class CapSummary:
    """A row per capped layer; ``str()`` is the table."""

    layers: tuple[LayerStatistics, ...]

    def __str__(self) -> str:
        return text_table(HEADER, [table_row(layer) for layer in self.layers])


def cap_summary(
    model: nn.Module,
    loader: Iterable[Any] | None = None,
    *,
    forward: Forward | None = None,
    progress: bool | None = None,
) -> CapSummary:
    """The caps of every DReLU and SReLU and, over a loader, where their elements lie.

    Args:
        loader, forward, progress: as in ``calibrate_caps``; without a loader only the caps are reported.

    Returns:
        CapSummary: layer, granularity, smallest, median and largest cap; shares of elements off, inside and capped;
        share of samples with no live unit (an input gradient of exactly zero through the layer); cap / std(x).

    Raises:
        TypeError, ValueError: model has no capped layer, or loader is no iterable of batches.
    """
    layers = capped_layers(model)
    sums = {name: LayerSums(name, layer) for name, layer in layers.items()}
    if loader is not None:
        check_loader(loader)
        with watched(layers, lambda name, layer, x: sums[name].add(x)):
            run_over(model, loader, forward, progress)
    return CapSummary(tuple(one.statistics() for one in sums.values()))
