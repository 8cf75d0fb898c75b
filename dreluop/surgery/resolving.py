"""Finds the object that an expression in a method gives, without running it; UNKNOWN if that depends on a call."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dreluop.surgery.methods import Method, outer

UNKNOWN: Any = object()
# An attribute of a module that holds a module: the module, and the name.
Slot = tuple[nn.Module, str]
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_HOLDERS = (list, tuple, dict, nn.ParameterList, nn.ParameterDict, *_CONTAINERS)


class Scope:
    """The names of a method as it runs on one module.

    Attributes:
        bound: known values of local names, such as the variable of a loop over modules.
    """

    def __init__(self, method: Method, module: nn.Module) -> None:
        self.method, self.module = method, module
        self.bound: dict[str, Any] = {}
        self._resolving: set[str] = set()

    def resolve(self, node: ast.expr | None) -> Any:  # noqa: PLR0911 (a case per expression)
        """The object that an expression gives, or UNKNOWN."""
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Name):
            return self._name(node.id)
        if isinstance(node, ast.Attribute):
            return attribute(*self._place(node))
        if isinstance(node, ast.Subscript):
            return _item(*self._place(node))
        if isinstance(node, ast.Call):
            return self._call(node)
        if isinstance(node, ast.Tuple | ast.List):
            parts = [self.resolve(part) for part in node.elts]
            return UNKNOWN if any(part is UNKNOWN for part in parts) else tuple(parts)
        return UNKNOWN

    def slot(self, node: ast.expr) -> Slot | None:
        """Where the module that an expression gives is registered, by the names that the expression reads."""
        alias = self.alias(node)
        if alias is not None:
            return self.slot(alias)
        holder, name = self._place(node)
        if isinstance(holder, nn.Sequential | nn.ModuleList) and isinstance(name, int):
            name = str(range(len(holder))[name]) if -len(holder) <= name < len(holder) else ""
        is_registered = isinstance(holder, nn.Module) and holder._modules.get(name) is not None
        return (holder, name) if is_registered else None

    def _place(self, node: ast.expr) -> tuple[Any, Any]:
        """The object that holds what an expression gives, and its attribute, key or index there."""
        if isinstance(node, ast.Attribute):
            return self.resolve(node.value), self.method.mangled(node.attr)
        if isinstance(node, ast.Subscript):
            return self.resolve(node.value), literal(node.slice)
        if isinstance(node, ast.Call) and self.resolve(node.func) is getattr and len(node.args) == 2:
            return self.resolve(node.args[0]), self.resolve(node.args[1])
        return UNKNOWN, UNKNOWN

    def alias(self, node: ast.expr) -> ast.expr | None:
        """The one expression that a local name stands for."""
        if not isinstance(node, ast.Name) or node.id in self.bound:
            return None
        values = self.method.bindings.get(node.id, ())
        return values[0] if len(values) == 1 and isinstance(values[0], ast.expr) else None

    def operands(self, node: ast.expr, method: str = "add") -> tuple[ast.expr, ast.expr] | None:
        """The two sides of ``a + b``, ``torch.add(a, b)`` or ``a.add(b)``."""
        if isinstance(node, ast.BinOp):
            return (node.left, node.right) if isinstance(node.op, ast.Add) else None
        if not isinstance(node, ast.Call) or node.keywords or any(isinstance(arg, ast.Starred) for arg in node.args):
            return None
        if isinstance(node.func, ast.Attribute) and node.func.attr == method and len(node.args) == 1:
            return (node.func.value, node.args[0]) if self.resolve(node.func.value) is UNKNOWN else None
        return (node.args[0], node.args[1]) if len(node.args) == 2 and self.resolve(node.func) is torch.add else None

    def is_made_of_parameters(self, node: ast.expr) -> bool:
        """Whether an expression reads parameters or buffers of the module, and no input."""
        values = list(self._sources(node, set()))
        return any(isinstance(value, Tensor) for value in values) and not any(value is UNKNOWN for value in values)

    def _sources(self, node: ast.expr, read: set[str]) -> Iterator[Any]:
        """The values that an expression reads, also those that are assigned to the local names in it."""
        # A method's value is computed from its object.
        called = {id(one.func) for one in ast.walk(node) if isinstance(one, ast.Call)}
        for part in ast.walk(node):
            if not isinstance(part, ast.Name | ast.Attribute | ast.Subscript) or id(part) in called:
                continue
            name = part.id if isinstance(part, ast.Name) else ""
            assigned = self.method.bindings.get(name)
            if assigned is None or name in self.bound or not all(isinstance(one, ast.expr) for one in assigned):
                yield UNKNOWN if self._is_set_by_code(part) else self.resolve(part)
            elif name not in read:
                read.add(name)
                for one in assigned:
                    yield from self._sources(one, read)  # type: ignore[arg-type]

    def _is_set_by_code(self, node: ast.expr) -> bool:
        """Whether it is an attribute of a module that holds what code put there: a result kept, or a state."""
        holder = self.resolve(node.value) if isinstance(node, ast.Attribute) else None
        if not isinstance(node, ast.Attribute) or not isinstance(holder, nn.Module):
            return False
        if node.attr not in holder._buffers:
            return isinstance(vars(holder).get(node.attr), Tensor)
        stored = (part for part in ast.walk(self.method.tree) if isinstance(part, ast.Attribute))
        return any(part.attr == node.attr and isinstance(part.ctx, ast.Store) for part in stored)

    def is_global(self, node: ast.expr) -> bool:
        """Whether a name, or the module before the dots, is one of the Python module, and not of the method."""
        while isinstance(node, ast.Attribute):
            node = node.value
        if not isinstance(node, ast.Name) or node.id == self.method.receiver:
            return False
        return all(isinstance(value, str) for value in self.method.bindings.get(node.id, ()))

    def _name(self, name: str) -> Any:
        if name in self.bound:
            return self.bound[name]
        if name == self.method.receiver:
            return self.module
        if name not in self.method.bindings:
            return outer(self.method.function, name, UNKNOWN)
        value, *others = self.method.bindings[name]
        if others or value is None or name in self._resolving:
            return UNKNOWN
        if isinstance(value, str):
            return _imported(value)
        self._resolving.add(name)
        try:
            return self.resolve(value)
        finally:
            self._resolving.discard(name)

    def _call(self, node: ast.Call) -> Any:
        function = self.resolve(node.func)
        args = [self.resolve(arg) for arg in node.args]
        kwargs = {one.arg: self.resolve(one.value) for one in node.keywords}
        known = not any(value is UNKNOWN for value in (*args, *kwargs.values()))
        if not known or None in kwargs:
            return UNKNOWN
        if function is functools.partial and args and callable(args[0]):
            return functools.partial(args[0], *args[1:], **{str(name): value for name, value in kwargs.items()})
        if function is getattr and len(args) == 2 and isinstance(args[1], str):
            return attribute(*args)
        return UNKNOWN


def attribute(holder: Any, name: str) -> Any:
    """An attribute as it is stored, without running a property; UNKNOWN if it is computed or not there."""
    if holder is UNKNOWN:
        return UNKNOWN
    if isinstance(holder, nn.Module):
        for stored in (holder._modules, holder._parameters, holder._buffers):
            if name in stored:
                return stored[name]
    if isinstance(holder, types.ModuleType):
        return vars(holder).get(name, UNKNOWN)
    if isinstance(holder, Tensor):
        return UNKNOWN
    value = inspect.getattr_static(holder, name, UNKNOWN)
    if isinstance(value, staticmethod):
        return value.__func__
    computed = hasattr(type(value), "__get__") and not isinstance(value, types.FunctionType | types.BuiltinFunctionType)
    return UNKNOWN if computed and not isinstance(holder, type) else value


def _item(holder: Any, index: Any) -> Any:
    if not isinstance(holder, _HOLDERS) or not isinstance(index, int | str):
        return UNKNOWN
    try:
        return holder[index]  # type: ignore[index]
    except (KeyError, IndexError, TypeError):
        return UNKNOWN


def literal(node: ast.expr) -> Any:
    """The number, string or the like that is written; UNKNOWN for other code."""
    try:
        return ast.literal_eval(node)
    except (TypeError, ValueError):
        return UNKNOWN


def _imported(path: str) -> Any:
    module, _, name = path.partition(":")
    try:
        found = importlib.import_module(module)
    except ImportError:
        return UNKNOWN
    return vars(found).get(name, UNKNOWN) if name else found
