"""The source of a method with its calls of activations directed to D-ReLUs."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterable, Mapping
from typing import Any

from dreluop.surgery import kinds, sites
from dreluop.surgery.calls import Call
from dreluop.surgery.classes import NewMethod
from dreluop.surgery.methods import Method, names_in
from dreluop.surgery.planning import Plan
from dreluop.surgery.resolving import Scope
from dreluop.surgery.sums import Sum, addends


def key_of(one: Plan) -> tuple[int, str, bool, bool, bool]:
    """What the new source of a method depends on."""
    return id(one.call.node), one.place.attribute, one.place.is_first, one.total is not None, one.call.is_certain


def questions(method: Method, scope: Scope) -> list[int]:
    """The calls of ``isinstance`` and ``type`` that ask for an activation class, by id of the node."""
    if names_in(method.function.__code__).isdisjoint(["isinstance", "type"]):
        return []
    found = []
    for node in method.calls:
        asks = {1: type, 2: isinstance}.get(len(node.args))
        if asks is not None and scope.resolve(node.func) is asks:
            # What type() is compared with may stand anywhere in the method.
            named = ast.walk(node.args[1]) if asks is isinstance else method.names
            found += [id(node)] if _names_activation(named, scope) else []
    return found


def changed(
    method: Method, new_name: str, plans: Iterable[Plan], supers: Mapping[int, str], asked: Iterable[int]
) -> NewMethod | None:
    """The new source of a method; None if nothing in it changes.

    Args:
        supers: new names of the methods that calls of ``super()`` reach, by id of the call.
        asked: the result of ``questions``.
    """
    # By id of the old node, the new one.
    copies: dict[int, ast.AST] = {}
    tree = copy.deepcopy(method.tree, copies)
    # The decorators stay around the function as they were.
    tree.decorator_list = []
    editor = _Editor(method.receiver)
    for one in plans:
        if not one.place.is_first or one.total is not None or not _takes_one(one.call.node):
            editor.calls[copies[id(one.call.node)]] = one
        if one.total is not None and one.total.statement is not None:
            editor.removed.add(copies[id(one.total.statement)])
    editor.supers = {copies[key]: name for key, name in supers.items() if key in copies}
    editor.questions = {copies[key] for key in asked}
    if not (editor.calls or editor.supers or editor.questions):
        return None
    new = ast.fix_missing_locations(editor.visit(tree))
    source = ast.unparse(new)
    pairs = zip(ast.walk(ast.parse(source).body[0]), ast.walk(new), strict=False)
    lines = {one.lineno: method.line(two) for one, two in pairs if hasattr(one, "lineno") and hasattr(two, "lineno")}
    return NewMethod(method.cls, method.name, new_name, source, lines)


def _takes_one(node: ast.Call | None) -> bool:
    """Whether a call gives its input by position: the argument of a D-ReLU has another name than that of a ReLU."""
    return node is not None and len(node.args) == 1 and not isinstance(node.args[0], ast.Starred)


def _names_activation(nodes: Iterable[ast.AST], scope: Scope) -> bool:
    named = (scope.resolve(node) for node in nodes if isinstance(node, ast.Name | ast.Attribute))
    parts = (part for one in named for part in (one if isinstance(one, tuple | list) else (one,)))
    return any(kinds.is_activation_class(part) for part in parts)


class _Editor(ast.NodeTransformer):
    def __init__(self, receiver: str) -> None:
        self._receiver = receiver
        self._last_sum: ast.AST | None = None
        self.calls: dict[ast.AST, Plan] = {}
        self.supers: Mapping[ast.AST, str] = {}
        self.questions: set[ast.AST] = set()
        self.removed: set[ast.AST] = set()

    def visit(self, node: ast.AST) -> Any:
        key = node
        node = super().visit(node)
        if key in self.removed:
            # The next statement has the call that gets the sum.
            self._last_sum = node
            return None
        if not isinstance(node, ast.Call):
            return node
        if key in self.supers:
            node.func = self._own(self.supers[key])
        elif key in self.questions:
            asks = sites.is_instance_before if len(node.args) == 2 else sites.type_before
            node.func = _name(asks.__name__)
        elif key in self.calls:
            return ast.copy_location(self._directed(node, self.calls[key]), node)
        return node

    def _own(self, name: str) -> ast.expr:
        return ast.Attribute(_name(self._receiver), name, ast.Load())

    def _directed(self, node: ast.Call, one: Plan) -> ast.Call:
        site = copy.deepcopy(node.func) if one.place.is_first else self._own(one.place.attribute)
        if one.total is not None:
            parts = self._addends(one.total, _input(node, one.call))
            # What is set in the D-ReLU's place later may take one input only.
            called = copy.deepcopy(site) if one.call.is_certain else node.func
            return ast.Call(_name(sites.call_site_of_sum.__name__), [site, called, *parts], [])
        if one.call.is_certain:
            return ast.Call(site, [_input(node, one.call)], [])
        return ast.Call(_name(sites.call_site.__name__), [site, node.func, *node.args], node.keywords)

    def _addends(self, total: Sum, x: ast.expr) -> list[ast.expr]:
        if total.statement is None:
            return list(addends(x))
        statement = self._last_sum
        if isinstance(statement, ast.AugAssign):
            assert isinstance(statement.target, ast.Name)
            return [_name(statement.target.id), statement.value]
        assert isinstance(statement, ast.Assign)
        return list(addends(statement.value))


def _name(name: str) -> ast.Name:
    return ast.Name(name, ast.Load())


def _input(node: ast.Call, call: Call) -> ast.expr:
    if call.node is not None and getattr(call.node.func, "value", None) is call.x:
        return node.func.value  # type: ignore[attr-defined, no-any-return]
    return node.args[0] if node.args else next(one.value for one in node.keywords if one.arg == "input")
