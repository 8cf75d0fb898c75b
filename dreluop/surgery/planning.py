"""Decides which D-ReLU each call of an activation gets: its name, its attribute and its caps."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import nn

from dreluop._internal import checks
from dreluop.modules import Granularity
from dreluop.surgery import calls, norms, sums
from dreluop.surgery.calls import Call, Found
from dreluop.surgery.channels import Producer
from dreluop.surgery.norms import Norm
from dreluop.surgery.report import Site, noted
from dreluop.surgery.running import Observed, Seen
from dreluop.surgery.sums import Sum

_NO_LAYER = "a clamp of something that no layer is known to make"
Dim = int | Callable[[Site], int] | None


class Target(NamedTuple):
    """Where a D-ReLU goes: ``is_first``: into the attribute that holds the activation now."""

    holder: nn.Module
    attribute: str
    name: str
    is_first: bool


@dataclass(eq=False)
class Plan:
    """What becomes of one call.

    Attributes:
        total: the residual sum that is fused.
        norm: the batch norm that computes the activation, and the sum.
        shares: another call of the same slot, whose D-ReLU it calls.
        shape: of the caps.
        dim: of the channels.
    """

    call: Call
    site: Site
    place: Target
    producer: Producer | None
    selected: bool = True
    total: Sum | None = None
    norm: Norm | None = None
    shares: Plan | None = None
    shape: tuple[int, ...] = (1,)
    dim: int = 1

    @property
    def has_own(self) -> bool:
        """Whether it gets a D-ReLU of its own."""
        return self.selected and self.shares is None

    def note(self, reason: str) -> None:
        joined = "; ".join(part for part in (self.site.reason, reason) if part)
        self.site = replace(self.site, reason=joined)

    def leave(self, reason: str) -> None:
        self.selected = False
        self.note(f"left: {reason}")


def plan(found: Found, producers: dict[Call, Producer], select: Callable[[Site], bool], fuse: bool) -> list[Plan]:
    """A plan per call."""
    plans = _named(found, producers)
    for one in plans:
        if one.call.reason:
            one.leave(one.call.reason)
        elif not select(one.site):
            one.selected = False
            one.note("not selected")
        elif fuse:
            _fuse(one)
    return plans


def _named(found: Found, producers: dict[Call, Producer]) -> list[Plan]:
    totals = Counter(call.slot_key for call in found.calls)
    seen: Counter[Any] = Counter()
    taken = {call.slot_key for call in found.calls}
    plans = []
    for call in found.calls:
        source, key, owner = call.source, call.slot_key, found.paths[id(call.owner)]
        seen[key] += 1
        is_first = key is not None and seen[key] == 1
        if key is not None and totals[key] > 1:
            source += f", call {seen[key]} of {totals[key]}"
        holder, attribute = call.slot if call.slot is not None and is_first else (call.owner, "")
        attribute = attribute or _free_name(call, taken)
        taken.add((id(holder), attribute))
        path = found.paths[id(holder)]
        place = Target(holder, attribute, f"{path}.{attribute}" if path else attribute, is_first)
        site = Site(
            place.name, source, f"{owner or '(model)'} ({type(call.owner).__name__})", call.activation.bound,
            call.activation.inplace, line=call.line, module=owner,
        )  # fmt: skip
        plans.append(Plan(call, site, place, producers.get(call)))
    return plans


def _share(plans: list[Plan], observed: Observed) -> None:
    """Give a slot's D-ReLU to the first call that is reached; the calls of it that are not reached share it."""
    groups: dict[Any, list[Plan]] = defaultdict(list)
    for one in plans:
        if one.selected and one.call.slot is not None:
            groups[one.call.slot_key].append(one)
    for first, *rest in groups.values():
        is_reached = {
            one: bool(observed.calls(one.site.name)) if observed.ran else one.call.is_reached for one in (first, *rest)
        }
        main = next((one for one, reached in is_reached.items() if reached), None)
        if main is None or not first.place.is_first:
            continue
        if main is not first:
            observed.swap(main.site.name, first.site.name)
            main.place, first.place = first.place, main.place
            main.site = replace(main.site, name=main.place.name)
        for one, reached in is_reached.items():
            if not reached:
                one.shares, one.place, one.total = main, main.place, None
                why = "the example does not reach this one" if observed.ran else "forward does not get to its method"
                one.site = replace(one.site, reason=f"calls the D-ReLU of another call: {why}")


def _free_name(call: Call, taken: set[Any]) -> str:
    base = call.slot[1] if call.slot is not None else ""
    if not base.isidentifier():
        base = "relu" if call.activation.bound is None else "relu6" if call.activation.bound == 6 else "hardtanh"
    names = itertools.chain([base], (f"{base}_{number}" for number in itertools.count(1)))
    return next(name for name in names if not hasattr(call.owner, name) and (id(call.owner), name) not in taken)


def _fuse(one: Plan) -> None:
    result = sums.before(one.call)
    if isinstance(result, Sum) and calls.has_hooks(calls.held(one.call.slot)):
        result = "the activation has hooks, which get the sum"
    if isinstance(result, str):
        one.note(f"not fused: {result}")
    elif result is not None:
        one.total = result


def fuse_norms(plans: list[Plan], found: Found, whole: set[int]) -> None:
    """Decide which sites become one with the batch norm before them, after ``settle``; notes why others do not."""
    uses = norms.Uses(found)
    shared = {id(one.shares) for one in plans}
    for one in plans:
        result = norms.before(one.call, one.total, uses, whole) if one.has_own else None
        if isinstance(result, Norm):
            if id(one) in shared:
                result = "another call has its D-ReLU too"
            elif one.dim != 1 or one.shape not in ((1,), (result.module.num_features,)):
                result = "its caps are not one for all or one per channel of the batch norm"
        elif result is None and one.has_own and one.producer and norms.is_batch_norm(one.producer.module):
            result = norms.NOT_BEFORE
        if isinstance(result, Norm):
            one.norm = result
        elif result is not None:
            one.note(f"kept apart: {result}")


def settle(plans: list[Plan], granularity: Granularity, dim: Dim, observed: Observed) -> None:
    """Decide the caps of each plan. A call that cannot have caps is left, with the reason.

    Raises:
        ValueError: the channels of some sites are not known; names all of these and the cure.
    """
    unknown: list[str] = []
    ambiguous: list[str] = []
    _share(plans, observed)
    for one in plans:
        if not one.has_own:
            continue
        if not one.place.is_first and calls.has_hooks(calls.held(one.call.slot)):
            one.note("the activation's hooks run here too; their handles take them off the first call only")
        name, inputs = one.site.name, observed.seen(one.site.name)
        one.site = noted(one.site, observed)
        if one.call.is_clamp and one.producer is None and not (inputs and all(part.dim is not None for part in inputs)):
            one.leave(_NO_LAYER)
        elif granularity == "layer":
            one.shape, one.dim = (1,), 1
        elif inputs:
            _from_run(one, inputs, granularity, dim, ambiguous)
        elif granularity == "channel" and one.producer is not None:
            one.shape, one.dim = (one.producer.channels,), one.producer.dim
        elif observed.ran:
            one.leave("the example does not reach it, so its shape is not known")
        else:
            unknown.append(repr(name))
        if one.selected and observed.calls(name) > 1:
            one.note(f"it is called {observed.calls(name)} times in a forward pass, with the same caps")
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
        try:
            found = {((part.shape[where],), where) for part, where in zip(seen, dims, strict=True)}  # type: ignore[index, misc]
        except IndexError as error:
            what = f"dim: got {chosen} for {one.site.name!r}, which gets shape {seen[0].shape}"
            raise ValueError(what) from error
    if len(found) > 1:
        listed = ", ".join(map(str, shapes))
        one.leave(f"it is called with the shapes {listed}, which cannot share {granularity} caps (a layer cap can)")
    else:
        one.shape, one.dim = found.pop()


def _dim(one: Plan, seen: Seen, chosen: int | None) -> int | None:
    if chosen is not None or len(seen.shape) == 2:
        return 1 if chosen is None else chosen
    return one.producer.dim if seen.dim is None and one.producer is not None else seen.dim


def described(one: Plan) -> Site:
    """The site of a plan, with what was done."""
    main = (one.shares or one).site
    return replace(one.site, name=main.name, cap_shape=main.cap_shape, action=main.action)


def caps_like(one: Plan, model: nn.Module) -> torch.Tensor:
    """A tensor with the device and dtype for the caps: from the layer before, else the owner, else the model."""
    modules = [one.producer.module if one.producer is not None else one.call.owner, one.call.owner, model]
    modules = modules if one.norm is None else [one.norm.module, *modules]
    tensors = (tensor for module in modules for tensor in module.parameters() if tensor.is_floating_point())
    return next(tensors, torch.empty(0))
