"""Caps started where they act at once: at a quantile of what comes in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dreluop._internal import cap_state, checks, dtensor
from dreluop._internal.text_table import text_table
from dreluop.caps.batches import Forward, check_loader, run_over
from dreluop.caps.inspection import in_dtype_of
from dreluop.caps.quantiles import StreamingQuantiles
from dreluop.caps.statistics import capped_layers, row_per_cap, watched
from dreluop.modules import DReLU

MAX_BYTES = 1 << 30


@dataclass(frozen=True)
class CalibratedLayer:
    """What a layer's caps were set to.

    Attributes:
        caps: their number; dead: how many had a quantile <= floor and got the layer's median.
        cap_min, cap_median, cap_max: the new caps.
        capped: share of the measured elements that lie at or above their new cap.
        exact: False where the quantiles come from a histogram, within the relative error.
    """

    name: str
    caps: int
    dead: int
    cap_min: float
    cap_median: float
    cap_max: float
    capped: float
    exact: bool


@dataclass(frozen=True)
class Calibration:
    """What a calibration did: a row per layer, the layers that no input reached, the batches seen."""

    layers: tuple[CalibratedLayer, ...]
    unreached: tuple[str, ...]
    batches: int

    def __str__(self) -> str:
        header = ("layer", "caps", "dead", "min", "median", "max", "capped", "quantile")
        rows = [
            (
                layer.name or "(model)", str(layer.caps), str(layer.dead), f"{layer.cap_min:.4g}",
                f"{layer.cap_median:.4g}", f"{layer.cap_max:.4g}", f"{layer.capped:.1%}",
                "exact" if layer.exact else "binned",
            )
            for layer in self.layers
        ]  # fmt: skip
        unreached = [f"not reached, caps kept: {name}" for name in self.unreached]
        return "\n".join([text_table(header, rows), *unreached])


def calibrate_caps(
    model: nn.Module,
    loader: Iterable[Any],
    quantile: float = 0.99,
    floor: float = 1e-3,
    *,
    forward: Forward | None = None,
    unreached: Literal["raise", "keep"] = "raise",
    progress: bool | None = None,
    relative_error: float = 0.01,
    max_bytes: int = MAX_BYTES,
) -> Calibration:
    """Set every cap of the model's DReLU modules to a quantile of what comes in, per cap, over a loader.

    From the paper's start at 100 a cap falls by about its learning rate per step and does nothing until it meets the
    pre-activations; a calibrated start saves 5 to 9 times the steps. The quantiles are taken with the old caps in
    place, in eval mode. A dead unit (quantile <= floor) gets the median of its layer's other units, as a cap near 0
    gets no gradient; a layer of dead units gets floor. Caps are set after the last batch, all or none.

    Args:
        model: its modes are put back.
        loader: an iterable of batches: tensors, or tuples or lists that start with one, moved to the model's device.
        quantile: in (0, 1].
        floor: least value of a cap, > 0.
        forward: ``forward(model, batch)`` for other batches.
        unreached: what to do with a DReLU that no input, or only empty ones, reaches in eval mode (auxiliary heads):
            ``"keep"`` leaves its caps and lists it.
        progress: a bar with tqdm: True, False, or None for "if tqdm is installed".
        relative_error: of the quantiles of a layer with more than 2^20 measured values; fewer are kept, and exact.
        max_bytes: memory for the histograms that this takes, all layers together (1,039 bins of 4 bytes per cap at
            0.01).

    Returns:
        Calibration: the new caps, and the share of elements that they will cap.

    Raises:
        TypeError: loader is a tensor or no iterable, or quantile, floor or relative_error is no number.
        ValueError: model has no DReLU, one is not reached, its caps cannot be set (as in ``set_caps``), it is compiled
            or a DataParallel on several devices, a number is out of range (of the caps' dtype too), loader is empty, or
            max_bytes does not suffice.
        RuntimeError: the pre-activations hold NaN, or a quantile is infinite.
        ImportError: progress is True and tqdm is not installed.
    """
    quantile = _number("quantile", quantile, "in (0, 1]", lambda v: 0 < v <= 1)
    floor = _number("floor", floor, "> 0", lambda v: 0 < v < math.inf)
    relative_error = _number("relative_error", relative_error, "in (0, 0.5]", lambda v: 0 < v <= 0.5)
    checks.at_least_zero("max_bytes", max_bytes)
    if unreached not in ("raise", "keep"):
        raise ValueError(f'unreached: got {unreached!r}; expected "raise" or "keep"')
    layers: dict[str, DReLU] = capped_layers(model, learned=True)
    cap_state.settle(model)
    for name, layer in layers.items():
        if dtensor.is_distributed(layer.cap):
            raise ValueError(
                f"model: the cap of {name!r} is sharded, and each process would calibrate it on its own data; "
                "calibrate before fully_shard"
            )
        least = torch.tensor(floor, dtype=torch.float64, device="cpu")
        in_dtype_of(layer.cap, least, f"floor of {name!r}")
    sketches = _sketches(layers, floor, relative_error, max_bytes)
    check_loader(loader)

    reached: set[str] = set()

    def look(name: str, layer: DReLU, x: Tensor) -> None:
        rows = row_per_cap(layer, x if x.dtype is torch.float64 else x.float())
        if rows.isnan().any():
            raise RuntimeError(f"the pre-activations of {name!r} hold NaN")
        reached.add(name)
        # -inf is off, but would make NaN between two values.
        sketches[name].add(rows.clamp(min=torch.finfo(rows.dtype).min / 4))

    with watched(layers, look):
        batches = run_over(model, loader, forward, progress)
    if batches == 0:
        raise ValueError("loader: got no batch; expected at least one")
    missed = tuple(name for name in layers if name not in reached or not sketches[name].count)
    if missed and unreached == "raise":
        why = (
            "got only empty inputs: no batch of the loader had a sample for it"
            if missed[0] in reached
            else "is not reached by a forward pass in eval mode"
        )
        raise ValueError(
            f'model: its DReLU {missed[0]!r} {why}; its caps cannot be calibrated (unreached="keep" leaves them)'
        )
    measured = {name: layer for name, layer in layers.items() if name not in missed}
    new = {name: _new_caps(name, layer, sketches[name], quantile, floor) for name, layer in measured.items()}
    cap_state.settle(model)
    cap_state.write(measured, {name: caps for name, (caps, _) in new.items()})
    # As read back: a parametrization may round them.
    caps = {name: layer.cap.detach().flatten().to(new[name][0]) for name, layer in measured.items()}
    rows = tuple(_row(name, sketches[name], caps[name], new[name][1]) for name in measured)
    return Calibration(rows, missed, batches)


def _sketches(
    layers: Mapping[str, DReLU], floor: float, relative_error: float, max_bytes: int
) -> dict[str, StreamingQuantiles]:
    """By layer, where its quantiles are to be gathered; refuses caps that cannot be set."""
    # Layers that share one cap share its quantile.
    cap_state.check_writable(layers)
    keys = {name: cap_state.key(layer) for name, layer in layers.items()}
    of_cap = {
        keys[name]: StreamingQuantiles(layer.cap.numel(), floor, relative_error) for name, layer in layers.items()
    }
    needed = sum(sketch.histogram_bytes for sketch in of_cap.values())
    if needed > max_bytes:
        raise ValueError(
            f"max_bytes: {sum(s.rows for s in of_cap.values())} caps need {needed} bytes of histograms at a "
            f"relative_error of {relative_error:g}, and {max_bytes} are allowed; allow more, or a larger relative_error"
        )
    return {name: of_cap[keys[name]] for name in layers}


def _new_caps(name: str, layer: DReLU, sketch: StreamingQuantiles, quantile: float, floor: float) -> tuple[Tensor, int]:
    """The caps as the layer's dtype rounds them, in the dtype of the sketch, and how many are of dead units."""
    values = sketch.quantile(quantile)
    if not values.isfinite().all():
        raise RuntimeError(f"the {quantile:g} quantile of the pre-activations of {name!r} is infinite")
    alive = values > floor
    instead = values[alive].median() if alive.any() else values.new_tensor(floor)
    caps = in_dtype_of(layer.cap, torch.where(alive, values, instead), f"the {quantile:g} quantile of {name!r}")
    return caps.to(values.dtype), int((~alive).sum())


def _row(name: str, sketch: StreamingQuantiles, caps: Tensor, dead: int) -> CalibratedLayer:
    numbers = (caps.min().item(), caps.median().item(), caps.max().item())
    return CalibratedLayer(name, caps.numel(), dead, *numbers, sketch.share_at_least(caps), sketch.is_exact)


def _number(name: str, value: Any, expected: str, fits: Any) -> float:
    number = checks.number(name, value)
    if not fits(number):
        raise ValueError(f"{name}: got {value}; expected a number {expected}")
    return number
