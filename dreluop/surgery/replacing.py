"""``replace_activations``: gives every call of a ReLU its own D-ReLU."""

from __future__ import annotations

import fnmatch
import functools
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from dreluop._internal import checks
from dreluop.caps.statistics import is_compiled
from dreluop.modules import GRANULARITIES, DReLU, Granularity
from dreluop.surgery import calls, channels, copies, edits, kinds, planning, running
from dreluop.surgery.calls import Found
from dreluop.surgery.classes import NewMethod, Rewritten, changes_of, class_of
from dreluop.surgery.planning import Dim, Plan
from dreluop.surgery.report import Action, Report, Site, remaining
from dreluop.surgery.resolving import Scope
from dreluop.surgery.running import Observed
from dreluop.surgery.sites import ACTIVATION, WAS, WITH_CAPS, InBatchNorm, PendingSite, ResidualDReLU, type_before

Fuse = bool | Literal["batch_norm"]
Select = Callable[[Site], bool] | str | Iterable[str]
# The changed methods, by what their source depends on.
_Made = dict[Any, NewMethod | None]


def replace_activations(
    model: nn.Module,
    *,
    granularity: Granularity = "channel",
    init: float = 100.0,
    select: Select | None = None,
    fuse: Fuse = True,
    dim: Dim = None,
    example_input: Any = None,
) -> Report:
    """Give every call of ReLU, ReLU6 or Hardtanh(0, c) in a model a D-ReLU of its own. Changes the model in place.

    Calls, not modules: a ``self.relu`` that a block calls three times becomes three D-ReLUs (``relu``, ``relu_1``,
    ``relu_2``), ``F.relu``, ``torch.relu`` and ``x.relu_()`` become modules too, and one ReLU in two places of a
    ``Sequential`` becomes two. An activation module is replaced in its attribute. If that is not enough, surgery
    changes the call in the source of its method, and the module gets a subclass of its class, of the same name. The
    rest stays the author's own code, so later edits of the model work as before.

    Args:
        model: on any device, in either mode. Apply it before ``torch.compile`` and before making the optimizer.
        granularity: ``"layer"``: one cap per site; ``"channel"``: one per channel: dimension 1, but the last after a
            ``Linear`` or ``LayerNorm``; ``"neuron"``: one per element of a sample, needs ``example_input``.
        init: where the caps of ReLU sites start, as in ``DReLU``. ReLU6 and Hardtanh(0, c) start at 6 and c.
        select: which sites: a function of a ``Site``, or a pattern or patterns of ``fnmatch`` for ``Site.name``
            (``"layer4.*"``), each of which must match; default all. All but some is a function:
            ``lambda site: not site.name.startswith("layer1.")``.
        fuse: compute ``relu(x + y)`` in one pass where nothing else uses the sum. The values in float32 and float64
            stay the same. ``"batch_norm"``: also ``relu(batch_norm(x))`` and ``relu(batch_norm(x) + y)``, where nothing
            else uses what the batch norm makes: it stays where it is, with its keys, and becomes a
            ``BatchNormDReLU1d``, ``2d`` or ``3d``, whose values are equal but for rounding. ``Site.reason`` says why
            others are kept apart.
        dim: the dimension of the channels, or a function of a ``Site`` that gives it (or None). It overrides the
            dimension that the layer before a site shows.
        example_input: the input of the model: a tensor, a tuple of arguments or a dictionary of keywords. A copy of
            the model runs on it, and the report says what the run saw. Needed where the layer before a site does not
            show the number of channels, and for neuron caps.

    Returns:
        Report: every site, what was done or why it was left; with ``example_input`` also every ReLU that remains. A
        model without sites gives an empty report, no error.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: granularity, init or select is unknown or matches nothing; model is an activation itself, compiled,
            scripted, lazy, or inside DistributedDataParallel or FSDP; the channels of sites are not known (the message
            names all of them), or the model cannot run on ``example_input``.
            The model is then as it was.
    """
    return replaced(
        model, granularity=granularity, init=init, select=select, fuse=fuse, dim=dim, example_input=example_input
    )[0]


def replaced(
    model: nn.Module,
    *,
    granularity: Granularity = "channel",
    init: float = 100.0,
    select: Select | None = None,
    fuse: bool | Literal["batch_norm"] = True,
    dim: Dim = None,
    example_input: Any = None,
) -> tuple[Report, _Undo]:
    """``replace_activations``, and what puts the model back."""
    init, fuse = _checked(model, granularity, init, fuse, dim)
    patterns = _patterns(select)
    chosen = select if callable(select) else lambda site: any(fnmatch.fnmatchcase(site.name, one) for one in patterns)
    found = Found(model)
    producers, called = channels.producers(found)
    plans = planning.plan(found, producers, chosen, bool(fuse))
    for pattern in patterns if plans else ():
        if not any(fnmatch.fnmatchcase(one.site.name, pattern) for one in plans):
            raise ValueError(
                f"select: {pattern!r} matches none of the {len(plans)} sites, such as {plans[0].site.name!r}"
            )
    observed, undo, made = Observed(), _Undo(found.modules), _Made()
    try:
        if example_input is not None:
            # What a run sees with a placeholder at every site.
            _install(undo, found, plans, lambda one: PendingSite(), made)
            names = [one.place.name for one in plans if one.has_own]
            observed = running.observe(model, names, running.as_arguments(example_input))
            if not observed.ran:
                raise ValueError(f"example_input: the model cannot run on it in eval mode: {observed.failed['eval']}")
            undo.restore()
        planning.settle(plans, granularity, dim, observed)
        if fuse == "batch_norm":
            planning.fuse_norms(plans, found, called)
        _install(undo, found, plans, functools.partial(_d_relu, model, init), made)
    except BaseException:
        undo.restore()
        raise
    done = tuple(map(planning.described, plans))
    return Report(done, remaining(done, found.unread, observed), tuple(observed.ran), observed.failed), undo


def _install(undo: _Undo, found: Found, plans: list[Plan], make: Callable[[Plan], nn.Module], made: _Made) -> None:
    """Insert the modules of the selected plans, and change the methods that must call them."""
    replaced: dict[int, nn.Module] = {}
    for one in plans:
        if one.norm is not None:
            _become(one, make(one), found.paths)
        elif one.has_own:
            _insert(one, make(one), replaced)
    # A call that is left must not reach the D-ReLU of another one.
    taken = {one.call.slot_key for one in plans if one.has_own and one.place.is_first and one.norm is None}
    changed = [one for one in plans if one.selected or one.call.slot_key in taken]
    for one in changed:
        if not one.selected:
            setattr(one.place.holder, one.place.attribute, kinds.plain(one.call.activation))
    undo.substitute(replaced)
    for code in found.code.values() if changed else ():
        _change_methods(code, [one for one in changed if one.call.owner is code.module], made)


def _insert(one: Plan, new: nn.Module, replaced: dict[int, nn.Module]) -> None:
    holder, attribute, _, is_first = one.place
    old = calls.held(one.call.slot)
    new.training = one.call.owner.training
    if isinstance(old, nn.Module):
        setattr(new, WAS, type_before(old))
        _take_hooks(old, new, is_first and id(old) not in replaced)
        if is_first:
            replaced.setdefault(id(old), new)
    setattr(holder, attribute, new)
    if is_first and isinstance(holder, nn.TransformerEncoderLayer):
        # Its fast path in eval mode computes a ReLU inside.
        holder.activation_relu_or_gelu = 0
    if is_first and isinstance(holder, nn.TransformerDecoderLayer):
        # Its __setstate__ sets F.relu if the attribute is not in its __dict__.
        vars(holder)[attribute] = new


def _become(one: Plan, activation: nn.Module, paths: dict[int, str]) -> None:
    """Give a batch norm the caps of an activation."""
    norm, (holder, attribute, *_) = one.norm, one.place
    assert norm is not None and isinstance(activation, DReLU)
    module: Any = norm.module
    if norm.call is None:
        setattr(holder, attribute, InBatchNorm().train(holder.training))
    else:
        setattr(module, ACTIVATION, attribute)
    # Another dictionary, as what undoes this restores the one that there was.
    vars(module)["_parameters"] = {**module._parameters, "cap": activation.cap}
    module.init = activation.init
    module.__class__ = WITH_CAPS[type(module)][norm.residual is not None]
    one.site = replace(one.site, name=paths[id(module)], action="batch_norm")


def _change_methods(code: calls.Code, plans: list[Plan], made: _Made) -> None:
    changed: dict[str, Any] = {}
    supers: dict[int, str] = {}
    # Base classes first: a method must change if one that it reaches through super() does.
    order = sorted(code.methods.items(), key=lambda item: -type(code.module).__mro__.index(item[0].cls))
    for method, new_name in order:
        own = [one for one in plans if one.call.method is method]
        questions = edits.questions(method, Scope(method, code.module))
        # Most modules of a class change alike, and as they did for the run.
        key = (method, new_name, tuple(map(edits.key_of, own)), tuple(supers.items()), tuple(questions))
        if key not in made:
            made[key] = edits.changed(method, new_name, own, supers, questions)
        new = made[key]
        if new is not None:
            changed[new_name] = new
            supers |= {node: new_name for node, target in code.supers.items() if target is method}
    if changed:
        before = changes_of(type(code.module)) or Rewritten(type(code.module), ())
        methods = {one.new_name: one for one in (*before.methods, *changed.values())}
        object.__setattr__(code.module, "__class__", class_of(Rewritten(before.base, tuple(methods.values()))))


def _checked(
    model: Any, granularity: Any, init: Any, fuse: Any, dim: Any
) -> tuple[float, bool | Literal["batch_norm"]]:
    check_model(model)
    if granularity not in GRANULARITIES:
        raise ValueError(f'granularity: got {granularity!r}; expected "layer", "channel" or "neuron"')
    init = checks.initial_cap(init)
    if fuse != "batch_norm":
        if isinstance(fuse, str):
            raise ValueError(f'fuse: got {fuse!r}; expected True, False or "batch_norm"')
        fuse = checks.flag("fuse", fuse)
    if dim is not None and not callable(dim):
        checks.integer("dim", dim)
    if kinds.of_module(model) is not None:
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
    # To ask torch.distributed.fsdp itself would import it, which takes seconds.
    fsdp = sys.modules.get("torch.distributed.fsdp")
    sharded = (fsdp.FullyShardedDataParallel, fsdp.FSDPModule) if fsdp is not None else ()
    for wrapper in (nn.parallel.DistributedDataParallel, *sharded):
        if any(isinstance(module, wrapper) for module in model.modules()):
            name = wrapper.__name__
            raise ValueError(f"model: got one inside {name}, which would not synchronize new caps; apply this before")
    for name, parameter in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(parameter):
            raise ValueError(f"model: {name!r} of a lazy module has no shape yet; run the model once before")


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


class _Undo:
    """The modules of a model as they are now, to restore them."""

    def __init__(self, modules: list[nn.Module]) -> None:
        # Nothing is changed in a ScriptModule.
        python = [module for module in modules if not isinstance(module, torch.jit.ScriptModule)]
        self._saved = [(module, type(module), dict(vars(module)), dict(module._modules)) for module in python]
        self._items: list[Callable[[], Any]] = []

    def substitute(self, replaced: dict[int, nn.Module]) -> None:
        """Give the lists, dictionaries and partials that the modules hold the new modules too."""
        for module, *_ in self._saved if replaced else ():
            held = {name: value for name, value in vars(module).items() if name not in calls.STATE}
            vars(module).update(copies.substituted(held, lambda part: replaced.get(id(part), part), self._set))

    def _set(self, holder: Any, key: Any, new: Any) -> None:
        self._items.append(functools.partial(holder.__setitem__, key, holder[key]))
        holder[key] = new

    def restore(self) -> None:
        while self._items:
            self._items.pop()()
        for module, cls, attributes, children in self._saved:
            object.__setattr__(module, "__class__", cls)
            for now, before in ((vars(module), attributes), (module._modules, children)):
                now.clear()
                now.update(before)


def _take_hooks(old: nn.Module, new: nn.Module, is_first: bool) -> None:
    """Run the hooks of an activation module on its D-ReLUs, at each call."""
    for name in calls.HOOKS:
        hooks = getattr(old, name)
        # The first one gets the same dictionary, so that a handle that the user holds still removes its hook.
        object.__setattr__(new, name, hooks if is_first else hooks.copy())
    new._is_full_backward_hook = old._is_full_backward_hook


def _d_relu(model: nn.Module, init: float, one: Plan) -> DReLU:
    """The module of a site; its plan notes what was done."""
    like = planning.caps_like(one, model)
    start = init if one.call.activation.bound is None else one.call.activation.bound
    checks.stored(f"init of {one.site.name!r}", start, like.dtype)
    options: dict[str, Any] = {"inplace": one.call.activation.inplace, "device": like.device, "dtype": like.dtype}
    if one.total is None:
        module = DReLU(one.shape, start, one.dim, **options)
    else:
        module = ResidualDReLU(one.shape, start, one.dim, sum_inplace=one.total.inplace, **options)
    action: Action = "replaced" if one.total is None else "fused"
    one.site = replace(one.site, cap_shape=tuple(module.cap.shape), action=action)
    return module
