"""``replace_activations``: a D-ReLU of its own for every call of a ReLU."""

from __future__ import annotations

import fnmatch
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from dreluop import validation
from dreluop.layers import is_compiled
from dreluop.modules import GRANULARITIES, DReLU, Granularity
from dreluop.surgery import activations, planning, shapes
from dreluop.surgery.effects import NotTraceableError
from dreluop.surgery.planning import Plan
from dreluop.surgery.report import Report, Site
from dreluop.surgery.rewriting import NewForward
from dreluop.surgery.sites import PendingSite, ResidualDReLU
from dreluop.surgery.survey import Owner, Survey, survey

Select = Callable[[Site], bool] | str | Iterable[str]


def replace_activations(
    model: nn.Module,
    *,
    granularity: Granularity = "channel",
    init: float = 100.0,
    select: Select | None = None,
    fuse: bool = True,
    example_input: Any = None,
) -> Report:
    """Give every call of ReLU, ReLU6 or Hardtanh(0, c) in a model a D-ReLU of its own. Changes the model in place.

    Calls, not modules: a ``self.relu`` that a block calls three times becomes three D-ReLUs (``relu``, ``relu_1``,
    ``relu_2``), ``F.relu``, ``torch.relu`` and ``x.relu_()`` become modules too. A module that is called once is
    swapped; where that is not enough, the forward of the one module that makes the call is traced with torch.fx, in
    train and in eval mode, and written anew. The module stays the object it was: its class is a subclass of the same
    name, its other attributes, parameters, hooks and ``state_dict`` keys stay, and a ``...cap`` comes in per site.
    A forward that does more than a graph holds (it sets attributes, prints, draws random numbers, has a ``with``) stays
    as it is; docs/surgery.md lists what. Of what a new forward reads beside its inputs, numbers that are passed on are
    read in each pass, and those that decide are fixed: it raises where one is another.

    Args:
        model: on any device, in either mode. Apply it before ``torch.compile`` and before making the optimizer.
        granularity: ``"layer"``: one cap per site; ``"channel"``: one per channel: dimension 1, but the last after a
            ``Linear`` or ``LayerNorm``; ``"neuron"``: one per element of a sample, needs ``example_input``.
        init: where the caps of ReLU sites start, as in ``DReLU``. ReLU6 and Hardtanh(0, c) start at 6 and c.
        select: which sites: a function of a ``Site``, or a pattern or patterns of ``fnmatch`` for ``Site.name``
            (``"layer4.*"``), each of which must match; default all. All but some is a function:
            ``lambda site: not site.name.startswith("layer1.")``.
        fuse: ``relu(x + y)`` becomes one pass over both, where nothing else uses the sum. Same values in float32 and
            float64.
        example_input: what the model is called with: a tensor, a tuple of arguments or a dictionary of keywords. Only
            its shapes are used (a run on fake tensors). Needed where the layer before a site does not tell the channel
            count, and for neuron caps.

    Returns:
        Report: every site, what was done and why not. No site at all is an empty report, not an error.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: granularity, init or select is unknown or matches nothing; model is an activation itself, compiled,
            scripted, lazy, or inside DistributedDataParallel or FSDP; the channels of a site are not known (pass
            ``example_input``), or the model cannot run on it.
            The model is then as it was.
    """
    init, fuse = _checked(model, granularity, init, fuse)
    patterns = _patterns(select)
    chosen = select if callable(select) else lambda site: any(fnmatch.fnmatchcase(site.name, one) for one in patterns)
    blocked: dict[int, str] = {}
    while True:
        found = survey(model)
        for owner in found.owners.values():
            if id(owner.module) in blocked:
                owner.rewritable, owner.error = False, blocked[id(owner.module)]
        plans, owners = planning.plan(found, model, chosen, fuse)
        try:
            # Reads the graphs, which writing the forwards uses up.
            layers = {id(one): _producer(found, one) for one in plans if one.selected}
            forwards = _written(owners, plans, blocked)
        except NotTraceableError:
            continue
        break
    for pattern in patterns if plans else ():
        if not any(fnmatch.fnmatchcase(one.site.name, pattern) for one in plans):
            raise ValueError(
                f"select: {pattern!r} matches none of the {len(plans)} sites, such as {plans[0].site.name!r}"
            )
    serving = [one for one in plans if one.selected and one.shares is None]
    changes = _Changes()
    try:
        olds = {id(one): _old(one) for one in plans}
        _apply(changes, plans, forwards, olds)
        if example_input is not None and serving:
            _note_shapes(model, example_input, serving)
        for one in serving:
            old = olds[id(one)]
            if example_input is not None and old is not None and _unknown(one, layers[id(one)], granularity):
                changes.set_child(one.holder, one.attribute, old)
                one.selected = False
                one.note("left: example_input does not reach it, so its shape is not known")
                continue
            module = _d_relu(model, one, layers[id(one)], granularity, init)
            _take_hooks(olds[id(one)], module, one.takes_slot)
            changes.set_child(one.holder, one.attribute, module)
    except BaseException:
        changes.undo()
        raise
    untraced = {owner.path: owner.error for owner in found.owners.values() if owner.error and _lost(owner, plans)}
    return Report(tuple(_described(one) for one in plans), {**untraced, **found.hidden})


def _lost(owner: Owner, plans: list[Plan]) -> bool:
    """Whether something of an owner that could not be rewritten may have been left."""
    own = [one.site for one in plans if one.found.owner is owner]
    return owner.traced is None or owner.has_other_calls or any(site.action == "left" or site.reason for site in own)


def _written(owners: list[Owner], plans: list[Plan], blocked: dict[int, str]) -> list[tuple[Owner, NewForward]]:
    """The new forward of each owner; those with the same code share one. What cannot be written is noted as blocked."""
    made: list[tuple[Owner, NewForward]] = []
    for owner in owners:
        try:
            forward = planning.rewrite(owner, plans)
        except NotTraceableError as error:
            blocked[id(owner.module)] = str(error)
            raise
        made.append((owner, next((other for _, other in made if other.same_as(forward)), forward)))
    return made


def _checked(model: Any, granularity: Any, init: Any, fuse: Any) -> tuple[float, bool]:
    check_model(model)
    if granularity not in GRANULARITIES:
        raise ValueError(f'granularity: got {granularity!r}; expected "layer", "channel" or "neuron"')
    init, fuse = validation.initial_cap(init), validation.flag("fuse", fuse)
    if activations.of_module(model) is not None:
        raise ValueError(f"model: got a {type(model).__name__}, which has no attribute to hold another; use a DReLU")
    return init, fuse


def check_model(model: Any) -> None:
    """Raise unless model is a module that surgery can look into."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}; expected a torch.nn.Module")
    if is_compiled(model):
        raise ValueError("model: got a compiled module; apply this to the module before torch.compile")
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError("model: got a TorchScript module; apply this to the module before torch.jit")
    for module in model.modules():
        wrapper = _distributed_wrapper(module)
        if wrapper:
            raise ValueError(
                f"model: got one inside {wrapper}, which would not synchronise new caps; apply this before"
            )
    for name, parameter in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(parameter):
            raise ValueError(f"model: {name!r} of a lazy module has no shape yet; run the model once before")


def _distributed_wrapper(module: nn.Module) -> str:
    if isinstance(module, nn.parallel.DistributedDataParallel):
        return "DistributedDataParallel"
    # To ask torch.distributed.fsdp itself would import it, which takes seconds.
    fsdp = sys.modules.get("torch.distributed.fsdp")
    names = ("FullyShardedDataParallel", "FSDPModule")
    return next((name for name in names if fsdp is not None and isinstance(module, getattr(fsdp, name))), "")


def _patterns(select: Any) -> list[str]:
    if select is None:
        return ["*"]
    if callable(select):
        return []
    patterns = [select] if isinstance(select, str) else list(select) if isinstance(select, Iterable) else None
    if patterns is None or not all(isinstance(pattern, str) for pattern in patterns):
        raise TypeError(f"select: got {type(select).__name__}; expected a function of a Site, a pattern or patterns")
    if not patterns:
        raise ValueError("select: got no pattern; expected at least one")
    return patterns


class _Changes:
    """What was set, so that it can be taken back."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], Any]] = []

    def set_child(self, holder: nn.Module, name: str, child: nn.Module) -> None:
        old = holder._modules.get(name)
        if old is None:
            self._undo.append(lambda: delattr(holder, name))
        else:
            self._undo.append(lambda: holder._modules.__setitem__(name, old))
        setattr(holder, name, child)

    def set_class(self, module: nn.Module, new: type[nn.Module]) -> None:
        old = type(module)
        self._undo.append(lambda: object.__setattr__(module, "__class__", old))
        object.__setattr__(module, "__class__", new)

    def undo(self) -> None:
        for step in reversed(self._undo):
            step()


def _apply(
    changes: _Changes,
    plans: list[Plan],
    forwards: list[tuple[Owner, NewForward]],
    olds: dict[int, nn.Module | None],
) -> None:
    """Hang a placeholder, or the module that stays, where every site's module goes, and swap the forwards."""
    rewritten = {id(owner.module) for owner, _ in forwards}
    for one in plans:
        if one.selected and one.shares is None:
            pending = PendingSite()
            pending.training = one.found.owner.module.training
            changes.set_child(one.holder, one.attribute, pending)
        elif not one.selected and one.found.target and not one.takes_slot and one.shares is None:
            old = olds[id(one)]
            if id(one.found.owner.module) in rewritten and old is not None:
                changes.set_child(one.holder, one.attribute, old)
    for owner, forward in forwards:
        changes.set_class(owner.module, forward.cls)


def _old(one: Plan) -> nn.Module | None:
    return one.found.owner.child(one.found.target) if one.found.target else None


_HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks",
)  # fmt: skip


def _take_hooks(old: nn.Module | None, new: nn.Module, takes_slot: bool) -> None:
    """What the user hung on an activation module goes on; on a module called several times, at each call."""
    for name in _HOOKS if old is not None else ():
        hooks = getattr(old, name)
        # The very dictionary, once, so that a handle that the user holds still removes its hook.
        object.__setattr__(new, name, hooks if takes_slot else hooks.copy())
    if old is not None:
        new._is_full_backward_hook = old._is_full_backward_hook


def _note_shapes(model: nn.Module, example_input: Any, serving: list[Plan]) -> None:
    for training in (False, True):
        if training and all(_pending(one).shape is not None for one in serving):
            return
        try:
            shapes.run(model, example_input, training)
        except Exception as error:
            mode = "train" if training else "eval"
            raise ValueError(f"example_input: the model cannot run on it in {mode} mode: {error}") from error


def _unknown(one: Plan, layer: shapes.Producer | None, granularity: Granularity) -> bool:
    needed = granularity == "neuron" or (granularity == "channel" and layer is None)
    return needed and _pending(one).shape is None


def _pending(one: Plan) -> PendingSite:
    child = one.holder._modules[one.attribute]
    assert isinstance(child, PendingSite)
    return child


def _producer(found: Survey, one: Plan) -> shapes.Producer | None:
    for node in one.found.nodes.values():
        made = shapes.producer(found, one.found.owner, activations.input_of(node))
        if made is not None:
            return made
    return None


def _d_relu(model: nn.Module, one: Plan, layer: shapes.Producer | None, granularity: Granularity, init: float) -> DReLU:
    """The module of a site; its plan is told what was done."""
    pending = _pending(one)
    cap_shape, dim = _cap_shape(one, pending.shapes, layer, granularity)
    like = planning.caps_like(one.found.owner, layer.module if layer else None, model)
    start = init if one.found.activation.bound is None else one.found.activation.bound
    validation.stored(f"init of {one.site.name!r}", start, like.dtype)
    options: dict[str, Any] = {"inplace": one.found.activation.inplace, "device": like.device, "dtype": like.dtype}
    module: DReLU
    if one.sums:
        in_place = next(iter(one.sums.values())).inplace
        module = ResidualDReLU(cap_shape, start, dim, sum_inplace=in_place, **options)
    else:
        module = DReLU(cap_shape, start, dim, **options)
    module.training = pending.training
    one.site = replace(
        one.site, shape=pending.shape, cap_shape=tuple(module.cap.shape), action="fused" if one.sums else "replaced"
    )
    return module


def _cap_shape(
    one: Plan, seen: list[tuple[int, ...]], layer: shapes.Producer | None, granularity: Granularity
) -> tuple[tuple[int, ...], int]:
    name = one.site.name
    if granularity == "layer":
        return (1,), 1
    if granularity == "neuron":
        if not seen:
            raise ValueError(f"example_input: neuron caps need the shape of what comes into {name!r}; {_PASS}")
        if len(seen[0]) < 2:
            raise ValueError(f"granularity: {name!r} gets shape {seen[0]}; neuron caps need a batch dimension first")
        found = {(shape[1:], 1) for shape in seen}
    elif seen:
        if min(map(len, seen)) < 2:
            raise ValueError(f"granularity: {name!r} gets shape {seen[0]}, which has no channels; use 'layer'")
        dims = [layer.dim if layer is not None and len(shape) > 2 else 1 for shape in seen]
        found = {((shape[dim],), dim) for shape, dim in zip(seen, dims, strict=True)}
    elif layer is None:
        raise ValueError(
            f"example_input: the layer before {name!r} does not tell how many channels it gets; {_PASS}, "
            "or granularity='layer'"
        )
    else:
        found = {((layer.channels,), layer.dim)}
    if len(found) > 1:
        raise ValueError(
            f"granularity: {name!r} is called with the shapes {', '.join(map(str, seen))}, which cannot share "
            f"{granularity} caps; use 'layer'"
        )
    return found.pop()


_PASS = "pass example_input=, an input that reaches it"


def _described(one: Plan) -> Site:
    if one.shares is None:
        return one.site
    main = one.shares.site
    return replace(one.site, name=main.name, shape=main.shape, cap_shape=main.cap_shape, action=main.action)
