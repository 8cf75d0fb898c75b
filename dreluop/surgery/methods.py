"""The methods that a module's classes define, and their source."""

from __future__ import annotations

import ast
import builtins
import dis
import functools
import itertools
import linecache
import types
from collections import ChainMap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from dreluop.surgery.compiling import FUTURES, original_line

_FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
# Statements and patterns that bind their name.
_NAMING = (
    ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.ExceptHandler, ast.MatchAs, ast.MatchStar
)  # fmt: skip


class NoSourceError(Exception):
    """The source of a method cannot be read, or is not what runs."""


@dataclass(eq=False)
class Method:
    """A function that a class defines, and its source.

    Attributes:
        cls, name: the class that defines it, and its name there.
        function: the function itself, inside the decorators that are around it.
        tree: its definition; not to be changed.
        receiver: the name of its first parameter, usually ``self``; empty if it has none.
        bindings: for every name that is bound in it, what is bound: an expression, ``"module:name"`` for an import, and
            None for anything else (a parameter, the variable of a loop).
    """

    cls: type
    name: str
    function: types.FunctionType
    tree: _FunctionNode
    receiver: str = field(init=False)
    bindings: Mapping[str, list[ast.expr | str | None]] = field(init=False)

    def __post_init__(self) -> None:
        parameters = [*self.tree.args.posonlyargs, *self.tree.args.args]
        self.bindings = bindings_in(self.tree)
        first = parameters[0].arg if parameters else ""
        self.receiver = first if self.bindings.get(first) == [None] else ""
        if self.receiver:
            del self.bindings[first]

    @functools.cached_property
    def parents(self) -> dict[int, ast.AST]:
        """The node around each node, by id."""
        return {id(child): node for node in ast.walk(self.tree) for child in ast.iter_child_nodes(node)}

    @functools.cached_property
    def calls(self) -> list[ast.Call]:
        """The calls in it, in the order in which they run: inner ones first."""
        found = [node for node in ast.walk(self.tree) if isinstance(node, ast.Call)]
        return sorted(found, key=lambda node: (node.end_lineno, node.end_col_offset))

    def mangled(self, name: str) -> str:
        """``_Net__act`` for ``__act``."""
        is_private = name.startswith("__") and not name.endswith("__")
        owner = self.cls.__name__.lstrip("_")
        return f"_{owner}{name}" if is_private and owner else name

    def line(self, node: ast.AST) -> str:
        """``file.py:12``."""
        return original_line(self.function.__code__.co_filename, node.lineno)  # type: ignore[attr-defined]


def outer(function: types.FunctionType, name: str, default: Any) -> Any:
    """The value of a name that a function does not bind."""
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    try:
        return cells[name].cell_contents if name in cells else ChainMap(function.__globals__, vars(builtins))[name]
    except (KeyError, ValueError):  # an empty cell
        return default


def methods_of(cls: type) -> Iterator[tuple[type, str, Any, types.FunctionType]]:
    """What the classes of a module define as methods, and the functions inside; torch's own classes are left out."""
    for base in cls.__mro__:
        for name, value in vars(base).items() if base.__module__.partition(".")[0] != "torch" else ():
            function = function_of(value)
            if function is not None and (name == "__call__" or not name.startswith("__")):
                yield base, name, value, function


def function_of(value: Any) -> types.FunctionType | None:
    """The function inside a method's decorators."""
    if isinstance(value, property | staticmethod | classmethod):
        value = value.fget if isinstance(value, property) else value.__func__
    # functools.lru_cache and the like make an object of a method.
    while "__wrapped__" in getattr(value, "__dict__", ()):
        value = value.__wrapped__
    return value if isinstance(value, types.FunctionType) else None


def names_in(code: types.CodeType) -> frozenset[str]:
    """The names and attributes in a function and in those inside it."""
    inner = (names_in(const) for const in code.co_consts if isinstance(const, types.CodeType))
    return frozenset(code.co_names).union(code.co_freevars, code.co_cellvars, code.co_varnames, *inner)


def attributes_in(code: types.CodeType) -> list[str]:
    """The attributes and globals that a function and those inside it name, as often as they do, and its strings."""
    own = [str(one.argval) for one in dis.get_instructions(code) if one.opcode in dis.hasname]
    inner = (attributes_in(const) for const in code.co_consts if isinstance(const, types.CodeType))
    return [*own, *(const for const in code.co_consts if isinstance(const, str)), *itertools.chain(*inner)]


@functools.lru_cache(maxsize=4096)
def method(cls: type, name: str, function: types.FunctionType) -> Method:
    """The method with its source.

    Raises:
        NoSourceError: there is none, or it is not what runs.
    """
    code = function.__code__
    linecache.checkcache(code.co_filename)
    source = "".join(linecache.getlines(code.co_filename, function.__globals__))
    trees, codes = _definitions(code.co_filename, source, code.co_flags & FUTURES)
    for tree in trees.get(code.co_firstlineno, ()):
        if tree.name == code.co_name:
            # pytest rewrites assertions, with names of its own.
            is_asserting = any(name.startswith("@py") for name in names_in(code))
            found = [one for one in codes if one.co_firstlineno == code.co_firstlineno]
            if not any(names_in(one) <= names_in(code) if is_asserting else one == code for one in found):
                raise NoSourceError("its source has changed since it was imported, or an import hook changed what runs")
            return Method(cls, name, function, tree)
    raise NoSourceError("its source cannot be read")


@functools.lru_cache(maxsize=64)
def _definitions(file: str, source: str, flags: int) -> tuple[dict[int, list[_FunctionNode]], list[types.CodeType]]:
    """The functions of a file by the line on which they begin, decorators included; and its codes."""
    found: dict[int, list[_FunctionNode]] = {}
    try:
        tree = ast.parse(source, file)
        codes = list(_codes_in(compile(source, file, "exec", flags=flags, dont_inherit=True)))
    except (SyntaxError, ValueError) as error:
        raise NoSourceError("its source cannot be read") from error
    for node in ast.walk(tree):
        if isinstance(node, _FunctionNode):
            first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
            found.setdefault(first, []).append(node)
    return found, codes


def _codes_in(code: types.CodeType) -> Iterator[types.CodeType]:
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            yield const
            yield from _codes_in(const)


def bindings_in(tree: ast.AST) -> dict[str, list[ast.expr | str | None]]:
    """What is bound to each name in a part of the code, as in ``Method.bindings``."""
    found: dict[str, list[ast.expr | str | None]] = {}

    def bind(name: str, value: ast.expr | str | None) -> None:
        found.setdefault(name, []).append(value)

    assigned: dict[int, ast.expr | None] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            assigned[id(node.targets[0])] = node.value
        elif isinstance(node, ast.AnnAssign | ast.NamedExpr):
            assigned[id(node.target)] = node.value
        elif isinstance(node, ast.Import):
            for one in node.names:
                top = one.name.partition(".")[0]
                bind(one.asname or top, one.name if one.asname else top)
        elif isinstance(node, ast.ImportFrom):
            for one in node.names:
                bind(one.asname or one.name, None if node.level else f"{node.module}:{one.name}")
        elif isinstance(node, ast.arg):
            bind(node.arg, None)
        elif isinstance(node, _NAMING) and node is not tree and node.name:
            bind(node.name, None)
        elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            # A statement comes before its parts.
            bind(node.id, assigned.get(id(node)))
    return found
