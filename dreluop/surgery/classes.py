"""A subclass made for one module, of the same name, with methods whose source surgery has changed."""

from __future__ import annotations

import abc
import copyreg
import functools
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from dreluop.surgery import sites
from dreluop.surgery.compiling import new_function
from dreluop.surgery.methods import NoSourceError, function_of

# What changed source may name besides the author's own names.
NAMES = {
    one.__name__: one
    for one in (
        sites.call_site, sites.call_site_of_sum, sites.call_norm, sites.type_before, sites.is_instance_before,
    )
}  # fmt: skip


@dataclass(frozen=True)
class NewMethod:
    """The changed source of a method.

    Attributes:
        cls, name: the class that defines the original, and its name there.
        new_name: its name in the new class: another one where ``super()`` reaches it.
        lines: where each line comes from.
    """

    cls: type
    name: str
    new_name: str
    source: str
    lines: Mapping[int, str] = field(compare=False, default_factory=dict)

    def __reduce__(self) -> tuple[Any, ...]:
        return NewMethod, (self.cls, self.name, self.new_name, self.source)


@dataclass(frozen=True)
class Rewritten:
    """The author's class and the methods that are changed; modules with the same changes have one class."""

    base: type[nn.Module]
    methods: tuple[NewMethod, ...]

    def __deepcopy__(self, memo: Any) -> Rewritten:
        return self


def changes_of(cls: type) -> Rewritten | None:
    """What surgery has changed in a class that it made; None for another class."""
    found = vars(cls).get("rewritten")
    return found if isinstance(found, Rewritten) else None


def origin_of(cls: type, name: str) -> tuple[type, str]:
    """The class of the author's that a method comes from, and its name there."""
    changes = changes_of(cls) or Rewritten(nn.Module, ())
    return next(((one.cls, one.name) for one in changes.methods if one.new_name == name), (cls, name))


@functools.lru_cache(maxsize=4096)
def class_of(changes: Rewritten) -> type[nn.Module]:
    """The subclass that has the changed methods."""
    base = changes.base
    members: dict[str, Any] = {
        "rewritten": changes,
        "__init__": _init,
        "__reduce_ex__": _reduce,
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
    }
    for one in changes.methods:
        around = vars(one.cls)[one.name]
        old = function_of(around)
        assert old is not None
        new = new_function(one.source, old, one.cls.__name__, NAMES, one.lines)
        members[one.new_name] = with_function(around, old, new)
    # Run neither __init_subclass__ nor the author's metaclass, which may count or register subclasses.
    is_notified = any("__init_subclass__" in vars(cls) for cls in base.__mro__[:-1])
    kind = abc.ABCMeta if issubclass(type(base), abc.ABCMeta) else type
    made: type[nn.Module] = kind.__new__(type(base), base.__name__, (_Quiet, base) if is_notified else (base,), members)
    return made


class _Quiet:
    def __init_subclass__(cls) -> None:
        pass


def with_function(around: Any, old: types.FunctionType, new: types.FunctionType) -> Any:
    """A method with the same decorators around another function.

    Raises:
        NoSourceError: the decorators hold the function in a way that another cannot take its place.
    """
    if around is old:
        return new
    if isinstance(around, property):
        return property(with_function(around.fget, old, new), around.fset, around.fdel, around.__doc__)
    values = [cell.cell_contents for cell in getattr(around, "__closure__", None) or ()]
    holds = [isinstance(value, types.FunctionType) and function_of(value) is old for value in values]
    if not isinstance(around, types.FunctionType) or sum(holds) != 1:
        is_bound = isinstance(around, staticmethod | classmethod)
        raise NoSourceError("it is a static or class method" if is_bound else "its decorator hides the function")
    inner = (with_function(one, old, new) if is_inner else one for one, is_inner in zip(values, holds, strict=True))
    cells = tuple(map(types.CellType, inner))
    copied = types.FunctionType(around.__code__, around.__globals__, around.__name__, around.__defaults__, cells)
    copied.__kwdefaults__ = around.__kwdefaults__
    return functools.update_wrapper(copied, new)


def _init(self: Any, *args: Any, **kwargs: Any) -> None:
    # Code that makes another module of this one's type gets the author's, with activations of its own.
    object.__setattr__(self, "__class__", type(self).rewritten.base)
    self.__init__(*args, **kwargs)


def _reduce(self: Any, protocol: Any) -> Any:
    cls: Any = next(one for one in type(self).__mro__ if "rewritten" in vars(one))
    reduced = super(cls, self).__reduce_ex__(max(protocol, 2))
    makes = (copyreg.__newobj__, copyreg.__newobj_ex__)  # type: ignore[attr-defined]
    if isinstance(reduced, tuple) and reduced[0] in makes and type(self) is cls:
        return (_new, (reduced[0], cls.rewritten, *reduced[1][1:]), *reduced[2:])
    return reduced


def _new(make: Any, changes: Rewritten, *args: Any) -> Any:
    return make(class_of(changes), *args)
