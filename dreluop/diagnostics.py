"""Watching the caps during training, and a word where they go wrong."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dreluop._internal import checks, torch_private
from dreluop._internal.text_table import text_table
from dreluop.caps.statistics import (
    HEADER,
    CappedLayer,
    LayerStatistics,
    LayerSums,
    capped_layers,
    dropped_by_cap,
    is_compiled,
    is_measurable,
    outside_graphs,
    pre_activation,
    table_row,
)

HISTORY = 1000


class SaturationWarning(UserWarning):
    """Caps that mask gradients, do nothing, or are dead."""


@dataclass(frozen=True)
class Snapshot:
    """What a monitor measured in one training step (counted from 1): a row per capped layer that the step reached."""

    step: int
    layers: tuple[LayerStatistics, ...]

    def __str__(self) -> str:
        return text_table(HEADER, [table_row(layer) for layer in self.layers])

    @property
    def line(self) -> str:
        """The snapshot in one line: means over the layers, and the worst layer."""
        count = max(len(self.layers), 1)
        off, inside, capped = (
            sum(getattr(layer, name) for layer in self.layers) / count for name in ("off", "inside", "capped")
        )
        worst = max(self.layers, key=lambda layer: layer.no_live)
        return (
            f"step {self.step}: off {off:.1%}, inside {inside:.1%}, capped {capped:.1%}; without a live unit at most "
            f"{worst.no_live:.1%} of samples ({worst.name or 'the model'})"
        )


def _drops(layer: CappedLayer) -> bool:
    # A batch norm with caps has no such options.
    return getattr(layer, "above", "cap") == "zero" or getattr(layer, "nan", "propagate") == "zero"


class SaturationMonitor:
    """Hooks on a model that measure every ``every``-th training step where the elements of its capped layers lie.

    A measured step costs an eighth to a third more, the others a Python call per layer: with the default 1 to 3 % of
    the training time (``python -m benchmarks surgery-monitor`` measures it). ``latest`` and ``history`` hold what was
    measured. Each of these is warned of once, as a ``SaturationWarning``:

    - masking: more than 5 % of the samples have no live unit in a layer: their gradient through it is exactly zero;
    - idle: after ``patience`` measured steps no cap has capped anything: the network is a plain ReLU network still;
    - dead caps: a cap is <= 0: its layer's output is 0 there, and it gets no gradient;
    - step regime: the median cap / std(x) of a layer is below 0.1: the layer is a step function;
    - faults: in eval mode, a layer with ``above="zero"`` or ``nan="zero"`` (``dreluop.surgery.protect``) dropped
      elements: they are out of the range of clean data, as a flipped bit makes them.

    Args:
        model: with at least one DReLU or SReLU; not yet compiled. Compiled afterwards, it has a graph break at each
            hook (an error with ``fullgraph=True``).
        every: measure steps 1, 1 + every, 1 + 2 every, ...: forward passes of the model in training mode, and by a
            count of their own those in eval mode, where only faults are looked for. What a
            checkpoint recomputes in the backward pass is no step, nor is a trace (export, fake tensors).
        writer: a TensorBoard ``SummaryWriter``, or anything with its ``add_scalar(tag, value, step)``.
        tag: what the tags begin with: ``tag/layer/capped``.
        log: called with ``Snapshot.line`` at every measured step: ``print``, ``logger.info``.
        patience: measured steps before "idle".

    Raises:
        TypeError, ValueError: model has no capped layer, is compiled or a DataParallel on several devices, every or
            patience is no int >= 1, writer has no ``add_scalar``, log is no function.
        RuntimeError: in training mode, the model is called under ``torch.vmap`` or captured into a CUDA graph.

    Use it as a context manager, or call ``close()``, to take the hooks off: before that, the model cannot be pickled
    (its ``state_dict`` can), and a deep copy of it has hooks of its own that nobody reads. Elements that are NaN count
    as inside, as their gradient goes to x.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        every: int = 20,
        writer: Any = None,
        tag: str = "saturation",
        log: Callable[[str], Any] | None = None,
        patience: int = 3,
    ) -> None:
        every, patience = checks.positive_int("every", every), checks.positive_int("patience", patience)
        if writer is not None and not callable(getattr(writer, "add_scalar", None)):
            raise TypeError(
                f"writer: got {type(writer).__name__}; expected an object with add_scalar(tag, value, step)"
            )
        if log is not None and not callable(log):
            raise TypeError(f"log: got {type(log).__name__}; expected a function of a string, such as print")
        if isinstance(model, nn.Module) and is_compiled(model):
            raise ValueError("model: got a compiled module; hooks inside it are not called as they must be")
        if isinstance(model, nn.DataParallel) and len(model.device_ids) > 1:
            raise ValueError(
                f"model: got a DataParallel on {len(model.device_ids)} devices, whose copies cannot be measured "
                "together; use DistributedDataParallel and monitor its .module"
            )
        layers = capped_layers(model)
        self._layers = list(layers.values())
        self._every, self._writer, self._tag, self._log, self._patience = every, writer, tag, log, patience
        self.step = self._inferences = 0
        self.history: deque[Snapshot] = deque(maxlen=HISTORY)
        self._sums: dict[str, LayerSums] | None = None
        self._warned: set[str] = set()
        # Elements that were dropped in a pass in eval mode that is looked at.
        self._dropped: dict[str, Tensor] | None = None
        self._measured = 0
        self._has_capped = False
        # The model's own hook opens the step, so it comes first, also where the model is a layer itself.
        opening = {"prepend": True} if model in layers.values() else {}
        self._handles: list[RemovableHandle] = []
        try:
            for name, layer in layers.items():
                self._handles.append(layer.register_forward_pre_hook(self._looker(name), with_kwargs=True))
            self._handles.append(model.register_forward_pre_hook(outside_graphs(self._begin), **opening))
            self._handles.append(model.register_forward_hook(outside_graphs(self._end)))
        except BaseException:
            # An interrupt: nobody would have the monitor, to close it.
            self.close()
            raise

    @property
    def latest(self) -> Snapshot | None:
        """The last measured step, or None before the first."""
        return self.history[-1] if self.history else None

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def __enter__(self) -> SaturationMonitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        finally:
            # An interrupt may have cut off the first call.
            self.close()

    def __str__(self) -> str:
        return "nothing measured yet" if self.latest is None else f"step {self.latest.step}\n{self.latest}"

    def _begin(self, model: nn.Module, args: Any) -> None:
        self._dropped = None
        if not model.training:
            self._sums = None
            self._begin_in_eval()
            return
        if is_measurable("SaturationMonitor"):
            if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
                raise RuntimeError(
                    "SaturationMonitor: the model is captured into a CUDA graph, whose replays call no hooks; close() "
                    "the monitor before"
                )
            self._sums = None
            self.step += 1
            if (self.step - 1) % self._every == 0:
                self._sums = {}

    def _begin_in_eval(self) -> None:
        if torch_private.transforms_active() or not any(map(_drops, self._layers)):
            return
        if is_measurable("SaturationMonitor"):
            self._inferences += 1
            if (self._inferences - 1) % self._every == 0:
                self._dropped = {}

    def _looker(self, name: str) -> Callable[[Any, Any, Any], None]:
        def look(layer: CappedLayer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._dropped is not None and _drops(layer):
                count = dropped_by_cap(layer, pre_activation(layer, args, kwargs)).sum()
                self._dropped[name] = self._dropped.get(name, 0) + count
            if self._sums is None or layer.cap.is_meta or not is_measurable("SaturationMonitor"):
                return
            if name not in self._sums:
                self._sums[name] = LayerSums(name, layer)
            self._sums[name].add(pre_activation(layer, args, kwargs))

        return outside_graphs(look)

    def _end(self, model: nn.Module, args: Any, result: Tensor) -> None:
        dropped, self._dropped = self._dropped, None
        if dropped:
            hit = [f"{name or 'the model'} {int(count)}" for name, count in dropped.items() if count]
            self._once("faults", hit, "elements out of the range of clean data were dropped, as faults make them")
        if self._sums is None or not is_measurable("SaturationMonitor"):
            return
        sums, self._sums = self._sums, None
        if not sums:
            return
        snapshot = Snapshot(self.step, tuple(one.statistics() for one in sums.values()))
        self.history.append(snapshot)
        self._measured += 1
        self._has_capped = self._has_capped or any(layer.capped > 0 for layer in snapshot.layers)
        if self._writer is not None:
            self._write(snapshot)
        if self._log is not None:
            self._log(snapshot.line)
        self._warn(snapshot)

    def _write(self, snapshot: Snapshot) -> None:
        for layer in snapshot.layers:
            for name in ("off", "inside", "capped", "no_live", "cap_over_std", "cap_min", "cap_median", "cap_max"):
                tag = "/".join(part for part in (self._tag, layer.name, name) if part)
                self._writer.add_scalar(tag, getattr(layer, name), snapshot.step)

    def _warn(self, snapshot: Snapshot) -> None:
        layers = {one.name or "the model": one for one in snapshot.layers}
        masked = [f"{name} {one.no_live:.0%}" for name, one in layers.items() if one.no_live > 0.05]
        dead = [name for name, one in layers.items() if one.cap_min <= 0]
        steps = [f"{name} {one.cap_over_std:.2g}" for name, one in layers.items() if one.cap_over_std < 0.1]
        self._once(
            "masking", masked,
            "more than 5 % of the samples have no live unit, so their gradient through the layer is exactly zero and "
            "attacks that follow the gradient say nothing (gradient masking)",
        )  # fmt: skip
        self._once("dead", dead, "caps <= 0: they give 0 and get no gradient; clamp them to a small positive floor")
        self._once("step", steps, "cap / std(x) is below 0.1: the layer is a step function")
        idle = self._measured >= self._patience and not self._has_capped
        self._once(
            "idle", list(layers) if idle else [],
            f"no cap has capped anything in {self._measured} measured steps: a plain ReLU network so far; start the "
            "caps lower (dreluop.surgery.calibrate_caps) or give them a larger learning rate",
        )  # fmt: skip

    def _once(self, kind: str, names: list[str], message: str) -> None:
        if not names or kind in self._warned:
            return
        self._warned.add(kind)
        listed = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        when = f"step {self.step}" if kind != "faults" else f"pass {self._inferences} in eval mode"
        warnings.warn(f"{when}: {message}: {listed}", SaturationWarning, stacklevel=2)
