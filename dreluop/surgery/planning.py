"""Decides which D-ReLU each call of an activation gets: its name, its attribute and its caps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from dreluop._internal import checks
from dreluop.modules import Granularity
from dreluop.surgery import calls, sums
from dreluop.surgery.calls import Call, Found
from dreluop.surgery.channels import Producer
from dreluop.surgery.report import Site
from dreluop.surgery.running import Observed, Seen
from dreluop.surgery.sums import Sum

_NO_LAYER = "a clamp of something that no layer is known to make"
Dim = int | Callable[[Site], int] | None


@dataclass(eq=False)
class Plan:
    """What becomes of one call.

    Attributes:
        holder, attribute: where its D-ReLU goes.
        is_first: the attribute is the one that holds the activation now.
        total: the residual sum that is fused.
        shares: another call of the same slot, whose D-ReLU it calls.
        shape: of the caps.
        dim: of the channels.
    """

    call: Call
    site: Site
    holder: nn.Module
    attribute: str
    is_first: bool
    producer: Producer | None
    selected: bool = True
    total: Sum | None = None
    shares: Plan | None = None
    shape: tuple[int, ...] = (1,)
    dim: int = 1

    def note(self, reason: str) -> None:
        joined = "; ".join(part for part in (self.site.reason, reason) if part)
        self.site = replace(self.site, reason=joined)

    def leave(self, reason: str) -> None:
        self.selected = False
        self.note(f"left: {reason}")


def plan(found: Found, producers: dict[Call, Producer], select: Callable[[Site], bool], fuse: bool) -> list[Plan]:
    """A plan per call."""
    plans = _named(found, producers)
    for group in _by_slot(plans):
        _share(group, [one for one in group if one.call.is_reached], "forward does not get to its method")
    for one in plans:
        if one.shares is not None:
            continue
        if one.call.reason:
            one.leave(one.call.reason)
        elif not select(one.site):
            one.selected = False
            one.note("not selected")
        else:
            if fuse:
                _fuse(one)
            if not one.is_first and has_hooks(calls.held(one.call.slot)):
                one.note("the activation's hooks run here too; their handles take them off the first call only")
    return plans


def _named(found: Found, producers: dict[Call, Producer]) -> list[Plan]:
    totals = Counter(call.slot_key for call in found.calls if call.slot is not None)
    seen: Counter[Any] = Counter()
    taken: set[tuple[int, str]] = {call.slot_key for call in found.calls if call.slot_key is not None}
    plans = []
    for call in found.calls:
        source, is_first = call.source, False
        if call.slot is not None:
            seen[call.slot_key] += 1
            is_first = seen[call.slot_key] == 1
            if totals[call.slot_key] > 1:
                source += f", call {seen[call.slot_key]} of {totals[call.slot_key]}"
        if is_first and call.slot is not None:
            holder, attribute = call.slot
        else:
            holder, attribute = call.owner, _free_name(call.owner, _base_name(call), taken)
            taken.add((id(holder), attribute))
        path = found.paths[id(holder)]
        owner = f"{found.paths[id(call.owner)] or '(model)'} ({type(call.owner).__name__})"
        site = Site(
            f"{path}.{attribute}" if path else attribute, source, owner, call.activation.bound, call.activation.inplace,
            line=call.line,
        )  # fmt: skip
        plans.append(Plan(call, site, holder, attribute, is_first, producers.get(call)))
    return plans


def _by_slot(plans: list[Plan]) -> list[list[Plan]]:
    found: dict[Any, list[Plan]] = {}
    for one in plans:
        if one.call.slot_key is not None:
            found.setdefault(one.call.slot_key, []).append(one)
    return list(found.values())


def _share(group: list[Plan], reached: list[Plan], why: str) -> None:
    """Give the slot's D-ReLU to the first call that is reached; calls that are not reached share it."""
    first = next((one for one in group if one.is_first), None)
    if first is None or not reached or len(reached) == len(group):
        return
    main = reached[0]
    if main is not first:
        names = main.site.name, first.site.name
        main.site, first.site = replace(main.site, name=names[1]), replace(first.site, name=names[0])
        places = main.holder, main.attribute
        (main.holder, main.attribute), (first.holder, first.attribute) = (first.holder, first.attribute), places
        main.is_first, first.is_first = True, False
    for one in group:
        if one not in reached:
            one.shares, one.total, one.selected = main, None, True
            one.site = replace(one.site, reason=f"calls the D-ReLU of another call: {why}")


def _base_name(call: Call) -> str:
    name = call.slot[1] if call.slot is not None else ""
    if name.isidentifier():
        return name
    return "relu" if call.activation.bound is None else "relu6" if call.activation.bound == 6 else "hardtanh"


def _free_name(module: nn.Module, base: str, taken: set[tuple[int, str]]) -> str:
    name, number = base, 0
    while hasattr(module, name) or (id(module), name) in taken:
        number += 1
        name = f"{base}_{number}"
    return name


def _fuse(one: Plan) -> None:
    result = sums.before(one.call)
    if isinstance(result, Sum) and has_hooks(calls.held(one.call.slot)):
        result = "the activation has hooks, which get the sum"
    if isinstance(result, str):
        one.note(f"not fused: {result}")
    elif result is not None:
        one.total = result


def has_hooks(module: Any) -> bool:
    """Whether a module has hooks that get its inputs or outputs."""
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return isinstance(module, nn.Module) and any(getattr(module, name) for name in names)


def settle(plans: list[Plan], granularity: Granularity, dim: Dim, observed: Observed | None) -> None:
    """Decide the caps of each plan. A call that cannot have caps is left, with the reason.

    Raises:
        ValueError: the channels of some sites are not known; names all of these and the cure.
    """
    unknown: list[str] = []
    ambiguous: list[str] = []
    if observed is not None:
        _share_by_run(plans, observed)
    for one in plans:
        if not one.selected or one.shares is not None:
            continue
        inputs = observed.seen(one.site.name) if observed is not None else []
        if inputs:
            one.site = replace(one.site, shape=inputs[0].shape)
        if one.call.is_clamp and one.producer is None and not (inputs and all(part.dim is not None for part in inputs)):
            one.leave(_NO_LAYER)
        elif granularity == "layer":
            one.shape, one.dim = (1,), 1
        elif inputs:
            _from_run(one, inputs, granularity, dim, ambiguous)
        elif granularity == "channel" and one.producer is not None:
            one.shape, one.dim = (one.producer.channels,), one.producer.dim
        elif observed is not None:
            one.leave("the example does not reach it, so its shape is not known")
        else:
            unknown.append(repr(one.site.name))
        if observed is not None:
            _note_calls(one, observed)
    _check_known(unknown, ambiguous, granularity)


def _check_known(unknown: list[str], ambiguous: list[str], granularity: Granularity) -> None:
    if unknown:
        what = "channels" if granularity == "channel" else "neurons"
        raise ValueError(
            f"example_input: the layer before does not tell how many {what} these sites get: {', '.join(unknown)}; "
            "pass example_input=, an input that reaches them, or granularity='layer'"
        )
    if ambiguous:
        raise ValueError(
            "dim: the channels of these sites may lie in any dimension, as no layer before tells which: "
            f"{', '.join(ambiguous)}; pass dim=1 (images), dim=-1 (features last), or a function of a Site"
        )


def _share_by_run(plans: list[Plan], observed: Observed) -> None:
    for group in _by_slot(plans):
        able = [one for one in group if one.selected and one.shares is None]
        before = [one.site.name for one in able]
        _share(able, [one for one in able if observed.calls(one.site.name)], "the example does not reach this one")
        # A call keeps the inputs that were recorded for it under its old name.
        seen = [observed.inputs.pop(name, {}) for name in before]
        observed.inputs.update({one.site.name: inputs for one, inputs in zip(able, seen, strict=True)})


def _from_run(one: Plan, seen: list[Seen], granularity: Granularity, dim: Dim, ambiguous: list[str]) -> None:
    shapes = list(dict.fromkeys(part.shape for part in seen))
    if min(map(len, shapes)) < 2:
        one.leave(f"an input of shape {min(shapes, key=len)} has no {granularity}s after a batch dimension")
        return
    if granularity == "neuron":
        found = {(shape[1:], 1) for shape in shapes}
    else:
        chosen = dim(one.site) if callable(dim) else dim
        chosen = checks.integer(f"dim of {one.site.name!r}", chosen) if chosen is not None else None
        dims = [_dim(one, part, chosen) for part in seen]
        if None in dims:
            ambiguous.append(f"{one.site.name!r} {seen[0].shape}")
            return
        if any(not -len(part.shape) <= where < len(part.shape) for part, where in zip(seen, dims, strict=True)):  # type: ignore[operator]
            raise ValueError(f"dim: got {chosen} for {one.site.name!r}, which gets shape {seen[0].shape}")
        found = {((part.shape[where],), where) for part, where in zip(seen, dims, strict=True)}  # type: ignore[index, misc]
    if len(found) > 1:
        listed = ", ".join(map(str, shapes))
        one.leave(f"it is called with the shapes {listed}, which cannot share {granularity} caps (a layer cap can)")
    else:
        one.shape, one.dim = found.pop()


def _dim(one: Plan, seen: Seen, chosen: int | None) -> int | None:
    if chosen is not None:
        return chosen
    if len(seen.shape) == 2:
        return 1
    return seen.dim if seen.dim is not None else one.producer.dim if one.producer is not None else None


def _note_calls(one: Plan, observed: Observed) -> None:
    often = observed.calls(one.site.name)
    if often > 1 and one.selected:
        one.note(f"it is called {often} times in a forward pass, with the same caps")
    one.site = replace(one.site, modes=observed.modes(one.site.name))


def described(one: Plan) -> Site:
    """The site of a plan, with what was done."""
    main = one
    while main.shares is not None:
        main = main.shares
    return replace(one.site, name=main.site.name, cap_shape=main.site.cap_shape, action=main.site.action)


def caps_like(one: Plan, model: nn.Module) -> torch.Tensor:
    """A tensor with the device and dtype for the caps: from the layer before, else the owner, else the model."""
    for module in (one.producer.module if one.producer else None, one.call.owner, model):
        for tensor in module.parameters() if module is not None else ():
            if tensor.is_floating_point():
                return tensor
    return torch.empty(0)
