"""The source of a method with its calls of activations directed to D-ReLUs."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dreluop.surgery import kinds, sites
from dreluop.surgery.classes import NewMethod
from dreluop.surgery.copies import parts
from dreluop.surgery.methods import Method, names_in
from dreluop.surgery.planning import Plan
from dreluop.surgery.resolving import Scope


def key_of(one: Plan) -> tuple[int, str, bool, bool, bool, int]:
    """What the new source of a method depends on."""
    norm = id(one.norm.call) if one.norm is not None else 0
    return id(one.call.node), one.place.attribute, one.place.is_first, one.total is not None, one.call.is_certain, norm


def questions(method: Method, scope: Scope) -> list[int]:
    """The calls of ``isinstance`` and ``type`` that ask for an activation class, by id of the node."""
    if names_in(method.function.__code__).isdisjoint(["isinstance", "type"]):
        return []
    found = []
    for node in method.calls:
        asks = {1: type, 2: isinstance}.get(len(node.args))
        if asks is not None and scope.resolve(node.func) is asks:
            # What type() is compared with may stand anywhere in the method.
            named = node.args[1] if asks is isinstance else method.tree
            found += [id(node)] if _names_activation(named, scope) else []
    return found


def changed(
    method: Method, new_name: str, plans: list[Plan], supers: Mapping[int, str], asked: Iterable[int]
) -> NewMethod | None:
    """The new source of a method; None if nothing in it changes.

    Args:
        supers: new names of the methods that calls of ``super()`` reach, by id of the call.
        asked: the result of ``questions``.
    """
    editor = _Editor(method, plans, supers, asked)
    if not (editor.calls or editor.supers or editor.questions):
        return None
    new = editor.new(method.tree)
    # The decorators stay around the function as they were.
    new.decorator_list = []
    ast.fix_missing_locations(new)
    source = ast.unparse(new)
    pairs = zip(ast.walk(ast.parse(source).body[0]), ast.walk(new), strict=False)
    lines = {one.lineno: method.line(two) for one, two in pairs if hasattr(one, "lineno") and hasattr(two, "lineno")}
    return NewMethod(method.cls, method.name, new_name, source, lines)


def _takes_one(node: ast.Call | None) -> bool:
    """Whether a call gives its input by position: the argument of a D-ReLU has another name than that of a ReLU."""
    return node is not None and len(node.args) == 1 and not isinstance(node.args[0], ast.Starred)


def _names_activation(tree: ast.AST, scope: Scope) -> bool:
    named = (scope.resolve(node) for node in ast.walk(tree) if isinstance(node, ast.Name | ast.Attribute))
    return any(kinds.is_activation_class(part) for value in named for part in parts(value))


class _Editor:
    """Makes a changed copy of a method's tree. What changes is known by id of the old node."""

    def __init__(self, method: Method, plans: list[Plan], supers: Mapping[int, str], asked: Iterable[int]) -> None:
        self._receiver = method.receiver
        self._copies: dict[int, ast.AST] = {}
        self.calls = {
            id(one.call.node): one
            for one in plans
            if not one.place.is_first or one.total or one.norm or not _takes_one(one.call.node)
        }
        without = (part.statement for one in plans for part in (one.total, one.norm) if part is not None)
        self._removed = {id(statement) for statement in without if statement is not None}
        # A batch norm with caps runs where the activation was called.
        self._later = {id(one.norm.call): one.norm.call.args[0] for one in plans if one.norm and one.norm.call}
        inside = set(map(id, method.calls))
        self.supers = {key: name for key, name in supers.items() if key in inside}
        self.questions = set(asked)

    def new(self, node: Any) -> Any:
        if isinstance(node, list):
            return [self.new(part) for part in node if id(part) not in self._removed]
        if not isinstance(node, ast.AST):
            return node
        if id(node) not in self._copies:
            self._copies[id(node)] = ast.copy_location(self._copied(node), node)
        return self._copies[id(node)]

    def _copied(self, node: ast.AST) -> Any:
        if id(node) in self._later:
            return self.new(self._later[id(node)])
        made = type(node)(**{name: self.new(value) for name, value in ast.iter_fields(node)})
        if isinstance(made, ast.Call):
            if id(node) in self.calls:
                made = self._directed(made, self.calls[id(node)])
            elif id(node) in self.supers:
                made.func = self._own(self.supers[id(node)])
            elif id(node) in self.questions:
                made.func = _name(sites.is_instance_before if len(made.args) == 2 else sites.type_before)
        return made

    def _own(self, name: str) -> ast.expr:
        return ast.Attribute(ast.Name(self._receiver, ast.Load()), name, ast.Load())

    def _directed(self, node: ast.Call, one: Plan) -> ast.Call:
        if one.norm is not None and one.norm.call is not None:
            called = ast.Constant(one.call.activation.bound) if one.call.is_certain else node.func
            operands = [self.new(part) for part in (one.norm.x, one.norm.residual) if part is not None]
            return ast.Call(_name(sites.call_norm), [self.new(one.norm.call.func), called, *operands], [])
        site = node.func if one.place.is_first else self._own(one.place.attribute)
        if one.total is not None:
            # What is set in the D-ReLU's place later may take one input only.
            called = site if one.call.is_certain else node.func
            operands = [self.new(one.total.x), self.new(one.total.residual)]
            return ast.Call(_name(sites.call_site_of_sum), [site, called, *operands], [])
        if one.call.is_certain:
            return ast.Call(site, [self.new(one.call.x)], [])
        return ast.Call(_name(sites.call_site), [site, node.func, *node.args], node.keywords)


def _name(function: Callable[..., Any]) -> ast.Name:
    return ast.Name(function.__name__, ast.Load())
