"""Which module every activation call will call after the surgery, and whose forward must be written anew for it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import fx, nn

from dreluop.surgery import activations
from dreluop.surgery.activations import Sum
from dreluop.surgery.effects import NotTraceableError
from dreluop.surgery.fixed import merged
from dreluop.surgery.report import Modes, Site
from dreluop.surgery.rewriting import NewForward, new_forward
from dreluop.surgery.survey import Found, Owner, Slot, Survey, has_hooks, times_called


@dataclass
class Plan:
    """One site: where its module will hang, and what will be done.

    Attributes:
        holder, attribute: the module that will have it, and under which name.
        target: the same as a path from the owner, as its new forward calls it.
        takes_slot: it hangs where the activation module that it replaces hung.
        shares: another site whose D-ReLU it calls too.
        sums: the residual sums fused into it, per mode; empty if none.
    """

    found: Found
    site: Site
    holder: nn.Module
    attribute: str
    target: str
    takes_slot: bool
    selected: bool = True
    shares: Plan | None = None
    sums: dict[bool, Sum] | None = None

    def note(self, reason: str) -> None:
        joined = "; ".join(part for part in (self.site.reason, reason) if part)
        self.site = replace(self.site, reason=joined)


def plan(found: Survey, model: nn.Module, select: Callable[[Site], bool], fuse: bool) -> tuple[list[Plan], list[Owner]]:
    """A plan per site, and the owners whose forward must be written anew."""
    plans = _named(found)
    for one in plans:
        one.selected = bool(select(one.site))
        if not one.selected:
            one.note("not selected")
    for one in plans:
        if one.shares is not None and one.shares.selected != one.selected:
            one.selected = one.shares.selected = False
            one.note("left: it shares a module with a call that is not selected")
    _note_shared_calls(found, model, plans)
    rewritten: dict[int, Owner] = {}
    groups = _groups(plans)
    for one in plans:
        owner = one.found.owner
        group = [other for other in groups.get(_slot(one), []) if other.selected] if one.found.target else []
        moves = not one.takes_slot and one.shares is None and bool(one.selected or group)
        if one.selected and fuse and owner.rewritable and owner.traced is not None:
            _fuse(one)
        if moves and one.selected and one.found.target and has_hooks(owner.child(one.found.target)):
            one.note("the activation's hooks run here too; their handles take them off the first call only")
        if moves or (one.selected and one.sums):
            if owner.rewritable and owner.traced is not None:
                rewritten[id(owner.module)] = owner
            elif one.selected:
                one.selected = False
                one.note(f"its call stands in a forward that cannot be rewritten: {owner.error}")
    return plans, list(rewritten.values())


def _slot(one: Plan) -> Slot:
    return one.found.owner.slot(one.found.target)


def _groups(plans: list[Plan]) -> dict[Slot, list[Plan]]:
    groups: dict[Slot, list[Plan]] = defaultdict(list)
    for one in plans:
        if one.found.target:
            groups[_slot(one)].append(one)
    return groups


def _named(found: Survey) -> list[Plan]:
    totals, seen = found.calls_of_slots(), Counter[Slot]()
    primary: dict[Slot, int] = {}
    for index, site in enumerate(found.sites):
        if site.target:
            slot = site.owner.slot(site.target)
            # A call that cannot be moved keeps its module; else the first one does.
            if slot not in primary or (not _movable(site) and _movable(found.sites[primary[slot]])):
                primary[slot] = index
    taken: set[Slot] = set()
    plans: list[Plan] = []
    by_index: dict[int, Plan] = {}
    for index, site in enumerate(found.sites):
        owner, source = site.owner, site.source
        holder, attribute, target, takes = owner.module, "", "", False
        first = None
        if site.target:
            slot = owner.slot(site.target)
            seen[slot] += 1
            if totals[slot] > 1:
                source += f", call {seen[slot]} of {totals[slot]}"
            takes = primary[slot] == index
            first = primary[slot]
            if takes or not _movable(site):
                holder = owner.child(site.target.rpartition(".")[0])
                attribute, target = slot[1], site.target
        if not attribute:
            attribute = target = _free_name(owner.module, _base_name(site), taken)
        taken.add((id(holder), attribute))
        prefix = f"{owner.path}." if owner.path else ""
        modes: Modes = "both" if len(site.nodes) != 1 else ("train" if True in site.nodes else "eval")
        described = Site(
            name=prefix + target, source=source, owner=str(owner), bound=site.activation.bound,
            inplace=site.activation.inplace, modes=modes,
        )  # fmt: skip
        by_index[index] = Plan(site, described, holder, attribute, target, takes)
        plans.append(by_index[index])
        if first is not None and not takes and not _movable(site):
            plans[-1].shares = by_index.get(first)
            plans[-1].note(f"shares the caps of another call: {owner.error}")
    return plans


def _movable(site: Found) -> bool:
    return site.owner.rewritable and site.owner.traced is not None


def _base_name(site: Found) -> str:
    last = site.target.rpartition(".")[2]
    if last.isidentifier():
        return last
    return "relu" if site.activation.bound is None else "relu6" if site.activation.bound == 6 else "hardtanh"


def _free_name(module: nn.Module, base: str, taken: set[Slot]) -> str:
    name, number = base, 0
    while hasattr(module, name) or (id(module), name) in taken:
        number += 1
        name = f"{base}_{number}"
    return name


def _note_shared_calls(found: Survey, model: nn.Module, plans: list[Plan]) -> None:
    counts = times_called(found, model)
    for one in plans:
        owner = one.found.owner
        if one.found.inside:
            one.note(f"{one.found.inside} became part of this forward: hooks that are set on it later do not run")
        if owner.traced is None:
            one.note(f"replaced as a module, all its calls share the caps: {owner.path or 'the model'} was not traced")
        elif not one.found.nodes:
            one.note("replaced as a module, all its calls share the caps: a trace does not reach it")
        elif counts[id(owner.module)] > 1:
            one.note(f"{owner} is called {counts[id(owner.module)]} times in a forward pass, with the same caps")


def _fuse(one: Plan) -> None:
    sums: dict[bool, Sum] = {}
    hooked = bool(one.found.target) and has_hooks(one.found.owner.child(one.found.target))
    for training, node in one.found.nodes.items():
        result = activations.sum_before(node, one.found.owner.child)
        if isinstance(result, Sum) and hooked:
            result = "the activation has hooks, which get the sum"
        if isinstance(result, str):
            one.note(f"not fused: {result}")
        if not isinstance(result, Sum):
            return
        sums[training] = result
    if len({total.inplace for total in sums.values()}) == 1:
        one.sums = sums


def rewrite(owner: Owner, plans: list[Plan]) -> NewForward:
    """The new forward of an owner. Its graphs are used up.

    Raises:
        NotTraceableError: it cannot be written.
    """
    assert owner.traced is not None
    for one in plans:
        if one.found.owner is not owner or not (one.selected or one.found.target):
            continue
        for training, node in one.found.nodes.items():
            total = one.sums[training] if one.sums else None
            _redirect(node, one.target, total)
    try:
        fixed = merged(*(traced.fixed for traced in owner.traced.values()))
        return new_forward(owner.module, {mode: traced.graph for mode, traced in owner.traced.items()}, fixed)
    except (SyntaxError, RuntimeError, TypeError) as error:
        raise NotTraceableError(f"{type(error).__name__}: {error}") from error


def _redirect(node: fx.Node, target: str, total: Sum | None) -> None:
    value = activations.input_of(node)
    if value is None:
        raise NotTraceableError(f"{node.format_node()} has no tensor for its first argument")
    # Changed where it stands, the node keeps its name, which is the new module's in most cases.
    node.op, node.target, node.kwargs = "call_module", target, {}
    node.args = (total.x, total.residual) if total else (value,)
    if total:
        node.graph.erase_node(total.node)


def caps_like(owner: Owner, layer: nn.Module | None, model: nn.Module) -> torch.Tensor:
    """A tensor whose device and dtype the caps take: of the layer before, else of the owner, else of the model."""
    for module in (layer, owner.module, model):
        for tensor in module.parameters() if module is not None else ():
            if tensor.is_floating_point():
                return tensor
    return torch.empty(0)
