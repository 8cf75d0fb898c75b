"""``protect``: a network in which a flipped bit of a weight or a value cannot spread as a huge number or NaN."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from dreluop._internal import checks
from dreluop._internal.cap_state import LearnedCap
from dreluop._internal.text_table import text_table
from dreluop._internal.zeroed import zeroed
from dreluop.caps.batches import Forward, run_over
from dreluop.caps.quantiles import StreamingQuantiles
from dreluop.caps.statistics import pre_activation, row_per_cap
from dreluop.functional import Above, NaN
from dreluop.modules import DReLU, Granularity, SReLU
from dreluop.surgery import guards
from dreluop.surgery.flow import Flow, tensors_in
from dreluop.surgery.guards import RangeGuard
from dreluop.surgery.replacing import replaced
from dreluop.surgery.report import Report

CAPPED = (DReLU, SReLU)
# Of quantiles, as calibrate_caps has them by default.
FLOOR, RELATIVE_ERROR = 1e-3, 0.01
Kind = Literal["cap", "own cap", "input range", "output range"]
# Activations without a cap, whose outputs get a range.
ACTIVATIONS = (
    nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardtanh, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.Softplus,
    nn.Softsign, nn.Tanh, nn.Sigmoid, nn.Hardsigmoid, nn.LogSigmoid, nn.GLU, nn.Softmax, nn.LogSoftmax, nn.ReLU,
)  # fmt: skip


@dataclass(frozen=True)
class Guard:
    """One bounded place of a network.

    Attributes:
        name: of the module.
        kind: ``"cap"``: a capped activation of the clean maximum; ``"own cap"``: one that had a cap, which stays;
            ``"input range"``: the same, with a guard of its input before it; ``"output range"``: a guard of the
            module's output.
        low, high: the bounds, or the least and largest of a layer's caps.
    """

    name: str
    kind: Kind
    low: float
    high: float


@dataclass(frozen=True)
class Protection:
    """What ``protect`` bounded, and what it did not.

    Attributes:
        guards: every bounded place.
        unguarded: what was left, as (name, reason).
        surgery: the report of ``replace_activations``.
        batches: of clean data that gave the bounds.
    """

    guards: tuple[Guard, ...]
    unguarded: tuple[tuple[str, str], ...]
    surgery: Report
    batches: int
    _bounds: dict[str, Tensor] = field(repr=False)

    def __str__(self) -> str:
        rows = [(one.name or "(model)", one.kind, f"{one.low:.4g}", f"{one.high:.4g}") for one in self.guards]
        left = [f"not guarded: {name or '(model)'}: {reason}" for name, reason in self.unguarded]
        return "\n".join([text_table(("module", "guard", "low", "high"), rows), *left])

    def changed_bounds(self, model: nn.Module) -> list[str]:
        """The caps and bounds of a protected model that are no longer what ``protect`` set, bit for bit.

        They lie in memory too, where a fault can hit them; ``restore_bounds`` puts them back.
        """
        return [name for name, now, set_to in self._compared(model) if not _same_bits(now, set_to)]

    def restore_bounds(self, model: nn.Module) -> list[str]:
        """Put caps and bounds back to what ``protect`` set; returns the names of those that had changed."""
        changed = [(name, now, set_to) for name, now, set_to in self._compared(model) if not _same_bits(now, set_to)]
        for _, now, set_to in changed:
            now.copy_(set_to)
        return [name for name, *_ in changed]

    def _compared(self, model: nn.Module) -> Iterator[tuple[str, Tensor, Tensor]]:
        tensors = {**dict(model.named_buffers()), **dict(model.named_parameters())}
        for name, set_to in self._bounds.items():
            if name not in tensors:
                raise ValueError(f"model: got one without {name!r}; expected the one that was protected")
            now = tensors[name].detach()
            yield name, now, set_to.to(now.device, now.dtype)


def protect(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    granularity: Granularity = "layer",
    above: Above = "zero",
    nan: NaN = "zero",
    quantile: float = 1.0,
    margin: float = 0.1,
    outputs: bool = True,
    example_input: Any = None,
    forward: Forward | None = None,
    progress: bool | None = None,
) -> Protection:
    """Bound every activation of a trained network by what clean data gives, and drop what is out of range. In place.

    A flipped bit of a float's exponent makes a huge number, infinity or NaN, and one of those in a layer's output loses
    the whole input. With ``above="zero"`` and ``nan="zero"`` such values become 0 instead, which a network takes as
    easily as a dropped unit (docs/faults.md has the curves). On clean data of the same range nothing changes.

    - Every call of ReLU becomes a capped activation, as in ``replace_activations``; its caps, now buffers, are the
      largest values that came in.
    - A ReLU6, a ``Hardtanh(0, c)`` and a capped activation keep their own caps; where clean values go beyond them, the
      range of their input is guarded too.
    - Other activation modules (GELU, SiLU, Hardswish, sigmoid, ...), and layers with weights whose output goes anywhere
      but straight (or through elementwise modules, such as batch norm) into one of the above, get a ``RangeGuard`` of
      their output: a projection into a residual sum, the logits.

    Args:
        model: trained, on any device; put into eval mode for the measurement and back.
        loader: clean inputs, as in ``calibrate_caps``.
        granularity: of the caps at ReLUs; a cap per layer protects as well as more of them, which can be hit too.
        above: what becomes of a value beyond its bound: ``"zero"``, or ``"cap"``, the bound (Ranger).
        nan: what becomes of NaN: ``"zero"``, or ``"propagate"``.
        quantile: of the values that come into a ReLU that is its cap, in (0, 1]; ranges are those of all values.
        margin: how far bounds lie beyond the clean values, as a share of the range, >= 0. With 0 the largest clean
            values are dropped wherever another batch size, dtype or kernel rounds them up.
        outputs: guard the model's own output too.
        example_input: as in ``replace_activations``.
        forward, progress: as in ``calibrate_caps``.

    Returns:
        Protection: a table of what is guarded and what is not.

    Raises:
        TypeError, ValueError: an argument is not as above, or as in ``replace_activations``; the model is protected
            already, has nothing to guard, or the loader is empty.
        RuntimeError: clean data gives NaN or infinity. In every case the model is as it was.
    """
    quantile, margin, outputs = _checked(model, above, nan, quantile, margin, outputs)
    own: set[nn.Module] = {module for module in model.modules() if isinstance(module, CAPPED)}
    surgery, undo = replaced(model, granularity=granularity, init=math.inf, example_input=example_input)
    try:
        measured = _Measured(model, quantile)
        flow = Flow(model, (*CAPPED, *ACTIVATIONS), measured.of_input, measured.of_output)
        with flow.watching():
            batches = run_over(model, loader, forward, progress)
        if not batches:
            raise ValueError("loader: got no batch; expected at least one of clean inputs")
        plan = _Plan(measured, flow, own, above, nan, margin, outputs)
        plan.make()
    except BaseException:
        undo.restore()
        raise
    plan.install()
    return Protection(tuple(plan.guards), tuple(plan.unguarded), surgery, batches, bounds_of(model))


def _checked(model: Any, above: Any, nan: Any, quantile: Any, margin: Any, outputs: Any) -> tuple[float, float, bool]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}; expected a torch.nn.Module")
    if any(isinstance(module, RangeGuard) for module in model.modules()):
        raise ValueError("model: got one that is protected already")
    zeroed(above, nan)  # Raises for a word that is unknown.
    if not 0 < checks.number("quantile", quantile) <= 1:
        raise ValueError(f"quantile: got {quantile}; expected a number in (0, 1]")
    return float(quantile), checks.at_least_zero("margin", margin), checks.flag("outputs", outputs)


class _Measured:
    """What clean data gives: the largest inputs of capped layers, by cap, and the ranges of other outputs."""

    def __init__(self, model: nn.Module, quantile: float) -> None:
        self.quantile = quantile
        self.names = {module: name for name, module in model.named_modules()}
        self.most: dict[nn.Module, Tensor] = {}
        self.sketches: dict[nn.Module, StreamingQuantiles] = {}
        self.with_residual: set[nn.Module] = set()
        self.ranges: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def of_input(self, layer: Any, args: Any, kwargs: Any) -> None:
        if not isinstance(layer, CAPPED):
            return
        x = pre_activation(layer, args, kwargs)
        if x.numel() == 0:
            return
        if len(args) > 1 or kwargs.get("residual") is not None:
            self.with_residual.add(layer)
        rows = row_per_cap(layer, x)
        most = self._finite(layer, rows.amax(1))
        self.most[layer] = torch.maximum(self.most[layer], most) if layer in self.most else most
        if self.quantile < 1:
            self.sketches.setdefault(layer, StreamingQuantiles(layer.cap.numel(), FLOOR, RELATIVE_ERROR)).add(rows)

    def of_output(self, module: nn.Module, output: Any) -> None:
        for t in tensors_in(output):
            if t.numel() == 0:
                continue
            low, high = (self._finite(module, one) for one in t.detach().aminmax())
            before = self.ranges.get(module, (low, high))
            self.ranges[module] = torch.minimum(low, before[0]), torch.maximum(high, before[1])

    def _finite(self, module: nn.Module, values: Tensor) -> Tensor:
        if not bool(values.isfinite().all()):
            name = self.names[module] or "the model"
            raise RuntimeError(f"loader: clean data gives NaN or infinity at {name!r}; expected finite values")
        return values

    def bound(self, layer: nn.Module) -> Tensor:
        """The new caps of a layer, by cap."""
        if self.quantile == 1:
            return self.most[layer].clamp(min=0)
        return self.sketches[layer].quantile(self.quantile).to(self.most[layer].dtype).clamp(min=0)


class _Plan:
    """Every guard of a model: worked out first, so that nothing is changed if one cannot be."""

    def __init__(
        self,
        measured: _Measured,
        flow: Flow,
        own: set[nn.Module],
        above: Above,
        nan: NaN,
        margin: float,
        outputs: bool,
    ) -> None:
        self.measured, self.flow, self.own = measured, flow, own
        self.above, self.nan, self.margin, self.outputs = above, nan, margin, outputs
        self.guards: list[Guard] = []
        self.unguarded: list[tuple[str, str]] = []
        self._changes: list[Callable[[], None]] = []

    def make(self) -> None:
        names = self.measured.names
        layers = set(self.flow.layers())
        for module, name in names.items():
            if isinstance(module, CAPPED):
                self._cap(module, name)
            elif isinstance(module, (LearnedCap, *ACTIVATIONS)):
                # Of a batch norm with caps too: NaN, or what is far above its caps, is only seen behind it.
                self._range(cast(nn.Module, module), name)
            elif module in layers and not self.flow.ends_in_activations(module):
                self._layer(module, name)
        model = next(iter(names))
        if self.outputs and self.flow.has_loose_output:
            last = _last_of(model)
            self._range(last, names[last])
        for name, function in self.flow.called:
            self.unguarded.append((name, f"calls {function} as a function, whose output has no guard"))
        if not self.guards:
            raise ValueError("model: got one in which clean data reaches no activation and no layer with weights")

    def install(self) -> None:
        for change in self._changes:
            change()

    def _cap(self, layer: Any, name: str) -> None:
        if layer not in self.measured.most:
            self.unguarded.append((name, "no clean input reached it"))
            return
        most = self.measured.most[layer]
        fits = bool((most <= layer.cap.detach().flatten()).all())
        if fits and layer not in self.own:
            caps = (self.measured.bound(layer) * (1 + self.margin)).reshape(layer.cap.shape).to(layer.cap.dtype)
            caps = torch.minimum(caps, layer.cap.detach())
            self._changes.append(partial(_set_cap, layer, caps, self.above, self.nan))
            self.guards.append(Guard(name, "cap", caps.min().item(), caps.max().item()))
            return
        least, largest = layer.cap.min().item(), layer.cap.max().item()
        if fits:
            self._changes.append(partial(_set_options, layer, self.above, self.nan))
            self.guards.append(Guard(name, "own cap", least, largest))
            return
        self._changes.append(partial(_set_options, layer, "cap", self.nan))
        if layer in self.measured.with_residual:
            self.guards.append(Guard(name, "own cap", least, largest))
            self.unguarded.append((name, "clean values go beyond its own cap, which a value out of range gives too"))
            return
        high = most.max() * (1 + self.margin)
        guard = RangeGuard(torch.full_like(high, -math.inf), high, self.above, self.nan)
        self._changes.append(partial(guards.guard_input, layer, guard))
        self.guards.append(Guard(name, "input range", -math.inf, high.item()))

    def _layer(self, layer: nn.Module, name: str) -> None:
        if self.flow.is_output(layer) and not self.outputs:
            self.unguarded.append((name, "the model's output (outputs=False)"))
            return
        self._range(layer, name)

    def _range(self, module: nn.Module, name: str) -> None:
        found = self.measured.ranges.get(module)
        if found is None:
            self.unguarded.append((name, "no clean input reached it"))
            return
        if isinstance(module, nn.Sequential):
            reason = "a Sequential with a forward or parameters of its own, which would call a guard as a layer"
            self.unguarded.append((name, reason))
            return
        low, high = found
        more = self.margin * (high - low)
        self._changes.append(
            partial(guards.guard_output, module, RangeGuard(low - more, high + more, self.above, self.nan))
        )
        self.guards.append(Guard(name, "output range", (low - more).item(), (high + more).item()))


def _last_of(model: nn.Module) -> nn.Module:
    """What gives a model's output: a Sequential calls its children, so a guard must hang in the last one."""
    while isinstance(model, nn.Sequential) and type(model).forward is nn.Sequential.forward and len(model):
        model = model[-1]
    return model


def _set_cap(layer: Any, caps: Tensor, above: Above, nan: NaN) -> None:
    layer._parameters.pop("cap", None)
    layer.register_buffer("cap", caps)
    _set_options(layer, above, nan)


def _set_options(layer: Any, above: Above, nan: NaN) -> None:
    layer.above, layer.nan = above, nan


def bounds_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the buffers, and parameters, that hold caps and ranges."""
    found: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, (*CAPPED, RangeGuard)):
            prefix = f"{name}." if name else ""
            held = {**module._buffers, **module._parameters}
            found |= {f"{prefix}{key}": value.detach().clone() for key, value in held.items() if value is not None}
    return found


def _same_bits(a: Tensor, b: Tensor) -> bool:
    # A tensor without dimensions cannot be viewed as bytes.
    return torch.equal(a.flatten().view(torch.uint8), b.flatten().view(torch.uint8))
