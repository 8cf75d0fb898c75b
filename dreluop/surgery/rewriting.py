"""A module whose forward is new code: a subclass made for it, of the same name, so that all else stays as it was."""

from __future__ import annotations

import copyreg
import importlib
import itertools
import linecache
import textwrap
from collections.abc import Mapping
from functools import cached_property
from types import ModuleType
from typing import Any

from torch import fx, nn

from dreluop.surgery.effects import NotTraceableError
from dreluop.surgery.fixed import Fixed, merged, unchanged

_numbers = itertools.count()
# The name under which the code of a new forward has its Fixed.
FIXED = "new_forward_fixed"


class NewForward:
    """The source of a forward and the class that has it.

    Copies share it; pickled, it is its source and the names that the source uses, by reference.
    """

    def __init__(self, base: type[nn.Module], source: str, names: Mapping[str, Any]) -> None:
        self.base = base
        self.source = source
        self.names = dict(names)

    def same_as(self, other: NewForward) -> bool:
        return (self.base, self.source, self.names) == (other.base, other.source, other.names)

    @cached_property
    def cls(self) -> type[nn.Module]:
        return self._make_class()

    def _make_class(self) -> type[nn.Module]:
        # With its lines in linecache the code shows in tracebacks and inspect.getsource, and TorchDynamo finds it.
        file = f"<dreluop.surgery forward {next(_numbers)} of {self.base.__qualname__}>"
        linecache.cache[file] = (len(self.source), None, self.source.splitlines(keepends=True), file)
        namespace = dict(self.names)
        exec(compile(self.source, file, "exec", dont_inherit=True), namespace)
        members = {
            "forward": namespace["forward"],
            "new_forward": self,
            "__reduce_ex__": _reduce,
            "__module__": self.base.__module__,
            "__qualname__": self.base.__qualname__,
            "__doc__": self.base.__doc__,
        }
        return type(self.base.__name__, (self.base,), members)

    def __deepcopy__(self, memo: dict[int, Any]) -> NewForward:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        names = {
            name: ("module", value.__name__) if isinstance(value, ModuleType) else ("value", value)
            for name, value in self.names.items()
            if name != "__builtins__"
        }
        return _unpickled, (self.base, self.source, names)


def _unpickled(base: type[nn.Module], source: str, names: Mapping[str, tuple[str, Any]]) -> NewForward:
    return NewForward(
        base,
        source,
        {name: importlib.import_module(value) if kind == "module" else value for name, (kind, value) in names.items()},
    )


def _reduce(self: Any, protocol: Any) -> Any:
    reduced = super(type(self), self).__reduce_ex__(protocol)
    if isinstance(reduced, tuple) and reduced[0] is copyreg.__newobj__:  # type: ignore[attr-defined]
        return (_new, (self.new_forward, *reduced[1][1:]), *reduced[2:])
    return reduced


def _new(forward: NewForward, *args: Any) -> Any:
    return forward.cls.__new__(forward.cls, *args)


def new_forward(module: nn.Module, graphs: Mapping[bool, fx.Graph], fixed: tuple[Fixed, ...]) -> NewForward:
    """The forward that runs one graph in train (True), the other in eval (False) mode.

    Args:
        fixed: the values that the graphs hold; the forward raises where one is another.

    Raises:
        NotTraceableError: the graphs cannot be written as one function.
    """
    parts: dict[bool, tuple[str, str, str]] = {}
    made = vars(type(module)).get("new_forward")
    if isinstance(made, NewForward):
        # The module was traced with this forward, which guards values that it holds itself.
        fixed = merged(made.names[FIXED], fixed)
    names: dict[str, Any] = {FIXED: fixed, unchanged.__name__: unchanged}
    guard = f"    {unchanged.__name__}(self, {FIXED})\n" if fixed else ""
    for training, graph in graphs.items():
        graph.lint()
        code = graph.python_code("self")
        for name, value in code.globals.items():
            if name in names and names[name] is not value and names[name] != value:
                raise NotTraceableError(f"{name} means different things in train and in eval mode")
            names[name] = value
        parts[training] = _split(code.src)
    if parts[True] == parts[False]:
        prelude, header, body = parts[True]
        return NewForward(_base_of(module), f"{prelude}{header}\n{guard}{body}", names)
    if parts[True][1] != parts[False][1]:
        raise NotTraceableError("its arguments differ between train and eval mode")
    prelude = "".join(dict.fromkeys([*parts[True][0].splitlines(True), *parts[False][0].splitlines(True)]))
    inner = {training: textwrap.indent(body, "    ") for training, (_, _, body) in parts.items()}
    source = f"{prelude}{parts[True][1]}\n{guard}    if self.training:\n{inner[True]}    else:\n{inner[False]}"
    return NewForward(_base_of(module), source, names)


def _base_of(module: nn.Module) -> type[nn.Module]:
    made = vars(type(module)).get("new_forward")
    return made.base if isinstance(made, NewForward) else type(module)


def _split(source: str) -> tuple[str, str, str]:
    prelude, definition, rest = source.partition("def forward(")
    header, _, body = (definition + rest).partition("\n")
    return prelude.lstrip("\n"), header, body.rstrip("\n") + "\n"
