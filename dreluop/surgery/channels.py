"""Finds the layer before each activation from the code, without running it: it gives the number of channels."""

from __future__ import annotations

import ast
import functools
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from dreluop.modules import DReLU, SReLU
from dreluop.surgery import kinds
from dreluop.surgery.calls import TRANSFORMER_LAYERS, Call, Found
from dreluop.surgery.classes import origin_of
from dreluop.surgery.methods import Method, NoSourceError, bindings_in, method, methods_of
from dreluop.surgery.resolving import UNKNOWN, Scope


@dataclass(frozen=True)
class Producer:
    """The layer before an activation, the number of its output channels and their dimension."""

    channels: int
    dim: int
    module: nn.Module


# Modules and functions whose output has the channels of their input.
_PASSING = (
    nn.Identity, nn.modules.dropout._DropoutNd, DReLU, SReLU,
    nn.SiLU, nn.GELU, nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.Hardsigmoid, nn.LeakyReLU, nn.ELU,
    functional.dropout, functional.dropout2d, functional.hardtanh, functional.silu, functional.gelu,
    torch.sigmoid, torch.tanh,
)  # fmt: skip
# Those that keep dimension 1 but not the last one.
_POOLING = (
    nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd, nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd, nn.Upsample, functional.max_pool2d, functional.avg_pool2d,
    functional.adaptive_avg_pool2d, functional.interpolate,
)  # fmt: skip
_PAIR_CALLS = (torch.add, torch.mul, torch.sub, operator.add, operator.mul)
_PAIR_OPERATORS = (ast.Add, ast.Sub, ast.Mult)
_MAKERS: tuple[tuple[Any, Callable[[Any], int], int], ...] = (
    (nn.modules.conv._ConvNd, lambda module: module.out_channels, 1),
    (nn.modules.batchnorm._NormBase, lambda module: module.num_features, 1),
    (nn.GroupNorm, lambda module: module.num_channels, 1),
    (nn.Linear, lambda module: module.out_features, -1),
    (nn.LayerNorm, lambda module: module.normalized_shape[-1], -1),
)
_LISTS = (nn.Sequential, nn.ModuleList, list, tuple)
_Value = Producer | None


def producers(found: Found) -> tuple[dict[Call, Producer], set[int]]:
    """The layer before each call, where the code shows it; and the ids of the modules that code is seen to call."""
    reader = _Reader(found)
    # The model first; then what its forward does not visibly call, with unknown inputs.
    for module in found.modules:
        if id(module) not in reader.read:
            reader.module(module, [])
            if module is not found.modules[0]:
                reader.called.discard(id(module))
    for code in found.code.values():
        for one in code.methods:
            if (id(code.module), one) not in reader.read:
                reader.method(one, code.module, [], {})
    return {call: one for call, one in reader.producers.items() if one is not None}, reader.called


class _Reader:
    def __init__(self, found: Found) -> None:
        self.by_node = {(id(call.owner), id(call.node)): call for call in found.calls if call.node is not None}
        self._by_slot = {call.slot_key: call for call in found.calls if call.node is None}
        self._reading: set[tuple[int, Method]] = set()
        # The modules, and the methods on modules, that were read.
        self.read: set[Any] = set()
        self.called: set[int] = set()
        self.producers: dict[Call, _Value] = {}

    def note(self, call: Call | None, value: _Value) -> None:
        if call is not None:
            self.producers[call] = _agreed([self.producers.get(call, value), value])

    def module(self, module: nn.Module, args: list[_Value]) -> _Value:
        """The layer behind the output of a module; records the calls inside it."""
        self.read.add(id(module))
        self.called.add(id(module))
        made = made_by(module)
        if made is not None:
            return made
        if isinstance(module, TRANSFORMER_LAYERS):
            self.note(self._by_slot.get((id(module), "activation")), made_by(module.linear1))
        value = args[0] if args else None
        forward = kinds.forward_of(module)
        if forward in (nn.Sequential.forward, nn.DataParallel.forward):
            for name, child in module._modules.items():
                self.note(self._by_slot.get((id(module), name)), value)
                value = self.module(child, [value])  # type: ignore[arg-type]
            return value
        if _keeps(module) or kinds.of_module(module) is not None:
            return value
        if _is_one_of(module, (*_PASSING, *_POOLING)):
            return _kept(module, value)
        return self.method(self.method_named(module, "forward"), module, args, {})

    def method_named(self, module: nn.Module, name: str) -> Method | None:
        """A method that code calls by this name, if its source can be read."""
        defined = ((cls, function) for cls, other, _, function in methods_of(type(module)) if other == name)
        cls, function = next(defined, (None, None))
        try:
            is_read = cls is not None and function is not None and name not in vars(module)
            return method(*origin_of(cls, name), function) if is_read else None  # type: ignore[arg-type]
        except NoSourceError:
            return None

    def method(self, read: Method | None, module: nn.Module, args: list[_Value], kwargs: dict[str, _Value]) -> _Value:
        if read is None or (id(module), read) in self._reading:
            return None
        self._reading.add((id(module), read))
        self.read.add((id(module), read))
        is_static = isinstance(vars(read.cls).get(read.name), staticmethod)
        names = [arg.arg for arg in (*read.tree.args.posonlyargs, *read.tree.args.args)][not is_static :]
        flow = _Flow(self, Scope(read, module), {**dict(zip(names, args, strict=False)), **kwargs})
        flow.block(read.tree.body)
        self._reading.discard((id(module), read))
        return _agreed(flow.returned) if flow.returned else None


class _Flow:
    """One pass through the statements of a method, with the layer that made the value of each local name."""

    def __init__(self, reader: _Reader, scope: Scope, names: dict[str, _Value]) -> None:
        self._reader, self._scope = reader, scope
        self._names = names
        self.returned: list[_Value] = []

    def block(self, statements: Iterable[ast.stmt]) -> None:
        for statement in statements:
            self._statement(statement)

    def _statement(self, node: ast.stmt) -> None:
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
            given = ast.BinOp(node.target, node.op, node.value) if isinstance(node, ast.AugAssign) else node.value
            value = self._value(given) if given is not None else None
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                self._forget([target])
                if isinstance(target, ast.Name):
                    self._names[target.id] = value
        elif isinstance(node, ast.Return):
            self.returned.append(self._value(node.value) if node.value is not None else None)
        elif isinstance(node, ast.If):
            self._value(node.test)
            self._either(_is_none(self._scope, node.test), node.body, node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            self._other(node)

    def _either(self, known: bool | None, *branches: list[ast.stmt]) -> None:
        before, ends = dict(self._names), []
        for branch, taken in zip(branches, (True, False), strict=True):
            self._names = dict(before)
            self.block(branch)
            leaves = bool(branch) and isinstance(branch[-1], ast.Return | ast.Raise | ast.Continue | ast.Break)
            if not leaves and known in (None, taken):
                ends.append(self._names)
        self._names = {name: _agreed([end.get(name) for end in ends]) for name in set[str]().union(*ends)}

    def _other(self, node: ast.stmt) -> None:
        """Loops, ``with``, ``try`` and the like: names that they bind are not known afterwards."""
        for part in ast.iter_child_nodes(node):
            value = part.context_expr if isinstance(part, ast.withitem) else part
            if isinstance(value, ast.expr):
                self._value(value)
        is_with = isinstance(node, ast.With | ast.AsyncWith)
        bound = node.items if is_with else [node]  # type: ignore[attr-defined]
        parts = (node, *getattr(node, "handlers", []), *getattr(node, "cases", []))
        blocks = [getattr(part, name, []) for part in parts for name in ("body", "orelse", "finalbody")]
        modules = self._scope.resolve(node.iter) if isinstance(node, ast.For) else ()
        target = getattr(getattr(node, "target", None), "id", "")
        for module in modules if target and isinstance(modules, _LISTS) else [UNKNOWN]:
            self._scope.bound[target] = module
            for block in blocks:
                self._forget(bound)
                self.block(block)
        self._scope.bound.pop(target, None)
        if not is_with:
            self._forget(bound)

    def _forget(self, nodes: Iterable[ast.AST]) -> None:
        for node in nodes:
            for name in _bound_in(node):
                self._names.pop(name, None)

    def _value(self, node: ast.expr) -> _Value:
        if isinstance(node, ast.Name):
            return self._names.get(node.id)
        if isinstance(node, ast.Call):
            return self._call(node)
        if isinstance(node, ast.BinOp):
            parts = [self._value(node.left), self._value(node.right)]
            return _pair(parts) if isinstance(node.op, _PAIR_OPERATORS) else None
        if isinstance(node, ast.IfExp):
            self._value(node.test)
            return _agreed([self._value(node.body), self._value(node.orelse)])
        self._forget([node])
        is_inner = isinstance(node, ast.Lambda | ast.ListComp | ast.GeneratorExp | ast.SetComp | ast.DictComp)
        for child in ast.iter_child_nodes(node) if not is_inner else ():
            if isinstance(child, ast.expr):
                self._value(child)
        return None

    def _call(self, node: ast.Call) -> _Value:
        args = [self._value(arg) for arg in node.args]
        kwargs = {one.arg or "**": self._value(one.value) for one in node.keywords}
        receiver = self._value(node.func.value) if isinstance(node.func, ast.Attribute) else None
        first = args[0] if args else kwargs.get("input")
        # Which parameters those after a starred one go to is not known.
        starred = (i for i, arg in enumerate(node.args) if isinstance(arg, ast.Starred))
        args = args[: next(starred, len(args))]
        called = self._scope.resolve(node.func)
        holder = self._scope.resolve(node.func.value) if isinstance(node.func, ast.Attribute) else UNKNOWN
        site = self._reader.by_node.get((id(self._scope.module), id(node)))
        if site is not None:
            value = receiver if site.source.startswith("Tensor.") else first
            self._reader.note(site, value)
        elif isinstance(called, nn.Module):
            value = self._reader.module(called, args)
        elif isinstance(holder, nn.Module) and isinstance(node.func, ast.Attribute):
            read = self._reader.method_named(holder, self._scope.method.mangled(node.func.attr))
            value = self._reader.method(read, holder, args, kwargs)
        else:
            value = _pair(args) if _is_one_of(called, _PAIR_CALLS) else _kept(called, first)
        return value


@functools.lru_cache(maxsize=4096)
def _bound_in(node: ast.AST) -> frozenset[str]:
    """The names that a part of the code binds."""
    return frozenset(bindings_in(node))


def _is_none(scope: Scope, test: ast.expr) -> bool | None:
    """Whether ``self.part is None`` or ``is not None``; None for any other question."""
    if not (isinstance(test, ast.Compare) and isinstance(test.ops[0], ast.Is | ast.IsNot) and len(test.ops) == 1):
        return None
    value, other = scope.resolve(test.left), scope.resolve(test.comparators[0])
    is_asked = value is not UNKNOWN and other is None
    return (value is None) == isinstance(test.ops[0], ast.Is) if is_asked else None


def _pair(parts: Sequence[_Value]) -> _Value:
    known = [one for one in parts if one is not None]
    # One channel is broadcast to those of the other operand.
    wide = _agreed([one for one in known if one.channels > 1])
    if wide is not None:
        return wide if all(one.dim == wide.dim for one in known) else None
    return None if None in parts else _agreed(known)


def _agreed(found: Sequence[_Value]) -> _Value:
    """The layer that all agree on; None if one is not known, or two differ."""
    facts = {(part.channels, part.dim) if part is not None else None for part in found}
    return found[0] if len(facts) == 1 else None


def _kept(called: Any, value: _Value) -> _Value:
    """The layer behind a module or function that keeps the channels of its input; None for any other."""
    keeps_dim_1 = value is not None and value.dim == 1 and _is_one_of(called, _POOLING)
    return value if keeps_dim_1 or _is_one_of(called, _PASSING) else None


def _is_one_of(called: Any, those: tuple[Any, ...]) -> bool:
    """Whether something is one of these functions, or a module that computes what one of these classes does."""
    if not isinstance(called, nn.Module):
        return any(called is one for one in those)
    # A subclass may have a forward of its own.
    where = getattr(kinds.forward_of(called), "__module__", None) or ""
    classes = tuple(one for one in those if isinstance(one, type))
    return isinstance(called, classes) and where.startswith(("torch.", "dreluop."))


def _keeps(module: nn.Module) -> bool:
    """Whether it is a normalization that takes any number of channels, or one over more than the last dimension."""
    if _is_one_of(module, (nn.modules.batchnorm._NormBase,)):
        return module.weight is None and module.running_mean is None
    return _is_one_of(module, (nn.LayerNorm,)) and len(module.normalized_shape) > 1  # type: ignore[arg-type]


def made_by(module: nn.Module) -> Producer | None:
    """The output channels of one of torch's layers; those of a Linear or LayerNorm are the last dimension."""
    if _keeps(module):
        return None
    for kind, number, dim in _MAKERS:
        if _is_one_of(module, (kind,)):
            return Producer(number(module), dim, module)
    return None
