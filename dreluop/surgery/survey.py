"""Every activation call of a model: whose forward makes it, through which attribute, in which mode."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import fx, nn
from torch.nn import functional

from dreluop.modules import DReLU, SReLU
from dreluop.surgery import activations, tracing
from dreluop.surgery.activations import Activation
from dreluop.surgery.effects import NotTraceableError
from dreluop.surgery.tracing import Place, Traced

_NAMES = frozenset({"relu", "relu_", "relu6", "hardtanh", "hardtanh_"})
# An attribute of a module: (id of the module that holds it, its name).
Slot = tuple[int, str]


@dataclass
class Owner:
    """A module whose forward is its own code (or a container that calls its children in turn).

    Attributes:
        traced: the graph of its forward in train (True) and eval (False) mode; None where it cannot be traced.
        error: why not, or why its forward must stay as it is.
        rewritable: whether its forward may be written anew; never for torch's containers.
        callers: the calls of this module in other owners' graphs.
        called_unseen: it may be called by forwards that could not be traced, too.
    """

    path: str
    module: nn.Module
    given: frozenset[str] | None
    traced: dict[bool, Traced] | None = None
    error: str = ""
    rewritable: bool = True
    callers: list[tuple[Owner, fx.Node]] = field(default_factory=list)
    called_unseen: bool = False

    @property
    def has_other_calls(self) -> bool:
        """Whether the code names activations, and the trace is one of several."""
        partial = any(one.partial for one in (self.traced or {}).values())
        code = inspect.unwrap(type(self.module).forward).__code__ if partial else None
        return code is not None and not _NAMES.isdisjoint(code.co_names)

    def child(self, target: str) -> nn.Module:
        return self.module.get_submodule(target)

    def slot(self, target: str) -> Slot:
        holder, _, attribute = target.rpartition(".")
        return id(self.child(holder)), attribute

    def __str__(self) -> str:
        return f"{self.path or '(model)'} ({type(self.module).__name__})"


@dataclass
class Found:
    """One activation call: its node in the graph of each mode in which it is reached.

    ``owner.traced`` is None for an activation module inside a module that cannot be traced; there are no nodes then.
    """

    owner: Owner
    activation: Activation
    target: str  # of a module, in owner; empty for a function or method
    source: str
    nodes: dict[bool, fx.Node]
    inside: str = ""  # a block that became part of the owner's forward, as str(Owner) tells it


@dataclass
class Survey:
    owners: dict[int, Owner]
    sites: list[Found]
    hidden: dict[str, str]  # torch modules that compute a ReLU inside, by name

    def calls_of_slots(self) -> Counter[Slot]:
        """How many sites call an activation through each attribute."""
        return Counter(site.owner.slot(site.target) for site in self.sites if site.target)


def survey(model: nn.Module) -> Survey:
    """Look through a model, which is left as it is.

    A module that is called several times in one forward pass and has activations inside becomes part of its caller's
    graph, so that each call has sites of its own; where that cannot be done the calls share.
    """
    inlined: dict[int, nn.Module] = {}
    while True:
        found = _Surveyor(model, inlined).run()
        more = {id(m): m for m in _called_often(found, model) if id(m) not in inlined}
        if not more:
            return found
        inlined |= more


def times_called(found: Survey, model: nn.Module) -> Counter[int]:
    """In one forward pass (of the mode with more), by id of the module; those not traced call each child once."""
    totals: Counter[int] = Counter()
    for training in (True, False):
        counts: Counter[int] = Counter()
        _count(found, model, training, 1, counts)
        totals |= counts
    return totals


def _count(found: Survey, module: nn.Module, training: bool, times: int, counts: Counter[int]) -> None:
    counts[id(module)] += times
    owner = found.owners.get(id(module))
    if owner is None:
        return
    if owner.traced is None:
        called = [child for _, child in _children(module)]
    else:
        graph = owner.traced[training].graph
        called = [owner.child(str(node.target)) for node in graph.nodes if node.op == "call_module"]
    for child in called:
        _count(found, child, training, times, counts)


def _called_often(found: Survey, model: nn.Module) -> Iterator[nn.Module]:
    counts = times_called(found, model)
    with_sites = {id(site.owner.module) for site in found.sites}
    for owner in found.owners.values():
        if counts[id(owner.module)] < 2 or not owner.rewritable or owner.traced is None:
            continue
        inside = any(id(part) in with_sites for part in owner.module.modules())
        by_code = all(caller.rewritable and caller.traced is not None for caller, _ in owner.callers)
        # A call that becomes part of another graph runs no hooks.
        if inside and by_code and owner.callers and not has_hooks(owner.module):
            yield owner.module


def has_hooks(module: nn.Module) -> bool:
    """Whether something is called with what comes into a module or out of it."""
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name) for name in names)


class _Surveyor:
    def __init__(self, model: nn.Module, inlined: dict[int, nn.Module]) -> None:
        self._model = model
        self._inlined = inlined
        self._found = Survey({}, [], {})

    def run(self) -> Survey:
        self._visit(self._model, "", None, None, _required(self._model))
        return self._found

    def _visit(
        self, module: nn.Module, path: str, caller: Owner | None, node: fx.Node | None, given: frozenset[str] | None
    ) -> None:
        if activations.of_module(module) is not None or isinstance(module, DReLU | SReLU):
            return
        known = self._found.owners.get(id(module))
        if known is None:
            known = self._new_owner(module, path, given)
            if known is None:
                return
            self._add_sites(known)
            self._visit_children(known)
        elif known.rewritable and known.traced is not None and known.given != given:
            self._found.sites = [site for site in self._found.sites if site.owner is not known]
            known.traced, known.error = None, "its callers pass different optional arguments"
            self._add_sites(known)
            self._visit_children(known)
        if caller is not None and node is not None:
            known.callers.append((caller, node))
        elif caller is not None:
            known.called_unseen = True

    def _new_owner(self, module: nn.Module, path: str, given: frozenset[str] | None) -> Owner | None:
        owner = Owner(path, module, given)
        targets = _chain_of(module)
        if targets is not None:
            owner.traced, owner.rewritable = dict(tracing.chain(module, targets)), False
        elif "forward" not in vars(module) and _is_torchs(module):
            reason = _relu_inside(module)
            if reason:
                self._found.hidden[path] = reason
            return None
        else:
            inlined = [part for part in module.modules() if id(part) in self._inlined and part is not module]
            try:
                owner.traced = dict(tracing.trace(module, inlined, given))
                owner.error = next((traced.frozen for traced in owner.traced.values() if traced.frozen), "")
                if isinstance(module, fx.GraphModule):
                    owner.error = "its forward is a torch.fx graph; apply surgery to the module before it is traced"
                if type(module).__module__ == _PARAMETRIZE:
                    owner.error = owner.error or "its class was made by torch.nn.utils.parametrize"
                owner.rewritable = not owner.error
            except NotTraceableError as error:
                owner.error = str(error)
        self._found.owners[id(module)] = owner
        return owner

    def _add_sites(self, owner: Owner) -> None:
        if owner.traced is None:
            for target, child in _children(owner.module):
                found = activations.of_module(child)
                if found is not None:
                    self._found.sites.append(Found(owner, found, target, f"module {target}", {}))
            return
        places: dict[Place, Found] = {}
        for training, traced in owner.traced.items():
            for call in traced.calls:
                site = places.get(call.place)
                if site is None:
                    target = str(call.node.target) if call.node.op == "call_module" else ""
                    inside = str(Owner(call.inside, owner.child(call.inside), None)) if call.inside else ""
                    site = Found(owner, call.activation, target, _source(call.node), {}, inside)
                    places[call.place] = site
                site.nodes[training] = call.node
                if call.activation != site.activation:
                    owner.rewritable, owner.error = False, "an activation differs between train and eval mode"
        self._found.sites += places.values()
        for target, child in self._uncalled(owner):
            found = activations.of_module(child)
            if found is not None:
                self._found.sites.append(Found(owner, found, target, f"module {target}", {}))

    def _uncalled(self, owner: Owner) -> Iterator[tuple[str, nn.Module]]:
        """The modules that a forward may call where it goes another way than its trace."""
        traced = owner.traced or {}
        if any(one.partial for one in traced.values()):
            called = {node.target for one in traced.values() for node in one.graph.nodes if node.op == "call_module"}
            yield from ((target, child) for target, child in _children(owner.module) if target not in called)

    def _visit_children(self, owner: Owner) -> None:
        prefix = f"{owner.path}." if owner.path else ""
        if owner.traced is None:
            for target, child in _children(owner.module):
                self._visit(child, prefix + target, owner, None, None)
            return
        for traced in owner.traced.values():
            for node in traced.graph.nodes:
                if node.op == "call_module":
                    child = owner.child(str(node.target))
                    self._visit(child, prefix + str(node.target), owner, node, _given(child, node))
        for target, child in self._uncalled(owner):
            self._visit(child, prefix + target, owner, None, None)


_PARAMETRIZE = "torch.nn.utils.parametrize"


def _is_torchs(module: nn.Module) -> bool:
    cls = type(module)
    if cls.__module__ == _PARAMETRIZE:
        cls = cls.__bases__[0]
    return cls.__module__.startswith("torch.") and not isinstance(module, fx.GraphModule)


def _chain_of(module: nn.Module) -> list[str] | None:
    """The children that one of torch's containers calls in turn, or None for any other module."""
    if activations.forward_of(module) is nn.DataParallel.forward:
        return ["module"]
    if activations.forward_of(module) is nn.Sequential.forward:
        return list(module._modules)
    return None


def _children(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules that a forward may call: the children, and what is in lists and dictionaries of modules."""
    for name, child in module._modules.items():
        if child is None:
            continue
        if type(child) in (nn.ModuleList, nn.ModuleDict):
            yield from ((f"{name}.{inner}", part) for inner, part in _children(child))
        else:
            yield name, child


def _given(module: nn.Module, node: fx.Node) -> frozenset[str]:
    forward = activations.forward_of(module)
    names = [] if forward is None else list(inspect.signature(forward).parameters)[1:]
    passed = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    return frozenset(name for name, value in passed.items() if value is not None)


def _required(module: nn.Module) -> frozenset[str]:
    forward = activations.forward_of(module)
    parameters = {} if forward is None else inspect.signature(forward).parameters
    return frozenset(name for name, one in parameters.items() if one.default is inspect.Parameter.empty)


def _source(node: fx.Node) -> str:
    if node.op == "call_module":
        return f"module {node.target}"
    if node.op == "call_method":
        return f"Tensor.{node.target}"
    name = getattr(node.target, "__name__", str(node.target))
    return (
        f"F.{name}"
        if node.target in (functional.relu, functional.relu6, functional.hardtanh, functional.hardtanh_)
        else f"torch.{name}"
    )


_QUANTIZED = ("torch.ao.", "torch.nn.quantized", "torch.nn.intrinsic", "torch.nn.qat")


def _relu_inside(module: nn.Module) -> str:
    if isinstance(module, torch.jit.ScriptModule):
        return "a TorchScript module cannot be looked into"
    if isinstance(module, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
        chosen = module.activation
        if chosen in (functional.relu, torch.relu) or (
            isinstance(chosen, nn.Module) and activations.of_module(chosen) is not None
        ):
            return f"torch.nn.{type(module).__name__} computes its ReLU inside"
    if isinstance(module, nn.RNNBase | nn.RNNCellBase) and "relu" in (
        getattr(module, "nonlinearity", ""), getattr(module, "mode", "").replace("RNN_RELU", "relu")
    ):  # fmt: skip
        return f"torch.nn.{type(module).__name__} computes its ReLU inside"
    if type(module).__module__.startswith(_QUANTIZED) and "relu" in type(module).__name__.lower():
        return f"{type(module).__module__}.{type(module).__name__} computes its ReLU inside"
    return ""
