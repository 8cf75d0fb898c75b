"""The values beside its inputs that a forward reads: read anew by its new code, or fixed there and guarded."""

from __future__ import annotations

import enum
import functools
import importlib
import itertools
import operator
import sys
import threading
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Number
from types import FrameType, ModuleType
from typing import Any

import torch
from torch import Tensor, fx, nn

from dreluop.surgery import activations
from dreluop.surgery.effects import NotTraceableError, Watch, globals_of, is_users

_ATOMS = (
    Number, str, bytes, type(None), enum.Enum, slice, range, torch.dtype, torch.device, torch.layout,
    torch.memory_format, torch.Size,
)  # fmt: skip
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, type(torch.Tensor.add), type)
_NOTHING = object()


@dataclass(frozen=True)
class Fixed:
    """A value that new code holds: where it is read (a path from the module, or a Python module), its name, itself."""

    holder: str | ModuleType
    name: str
    value: Any

    def __reduce__(self) -> tuple[Any, ...]:
        if isinstance(self.holder, str):
            return Fixed, (self.holder, self.name, self.value)
        return _of_python_module, (self.holder.__name__, self.name, self.value)


def merged(*parts: Iterable[Fixed]) -> tuple[Fixed, ...]:
    """Each place once; the first value that was read there."""
    found: dict[tuple[Any, str], Fixed] = {}
    for one in itertools.chain(*parts):
        found.setdefault((one.holder, one.name), one)
    return tuple(found.values())


def _of_python_module(holder: str, name: str, value: Any) -> Fixed:
    return Fixed(importlib.import_module(holder), name, value)


def unchanged(module: nn.Module, fixed: tuple[Fixed, ...]) -> None:
    """Raise where a value that new code holds is another now."""
    for one in fixed:
        holder: Any = one.holder
        if isinstance(holder, str):
            holder = module.get_submodule(holder)
        now = getattr(holder, one.name, _NOTHING)
        if now is not one.value and plain(now) != one.value:
            raise ValueError(
                f"{one.name}: got {now!r}; the forward of this {type(module).__name__} was rewritten by "
                f"dreluop.surgery while it was {one.value!r}. Set it before the surgery"
            )


def plain(value: Any) -> Any:
    """A copy of a value made of numbers, names, functions and containers of them, which ``==`` compares.

    Raises:
        TypeError: it is another object, whose change could not be told.
    """
    if isinstance(value, (*_ATOMS, *_FUNCTIONS)):
        return value
    if type(value) in (list, tuple, set, frozenset):
        return type(value)(plain(part) for part in value)
    if type(value) is dict:
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, functools.partial):
        return "partial", plain(value.func), plain(value.args), plain(value.keywords)
    if isinstance(value, types.MethodType) and isinstance(value.__self__, nn.Module):
        return "method", value.__func__
    raise TypeError(f"{type(value).__name__}")


class Reads:
    """What a forward read while it was traced.

    Args:
        root: the module whose forward it is.
        own: the modules whose forward is part of the trace; only their ``training`` is set by it.
        live: makes the stand-in for a number or tensor that new code reads anew, from its path; None: all are fixed.
    """

    def __init__(self, root: nn.Module, own: list[nn.Module], live: Callable[[str], Any] | None) -> None:
        self._paths = {id(module): name for name, module in root.named_modules()}
        self._own = set(map(id, own))
        self._live = live
        self.watch = Watch(self._enter)
        self._fixed: dict[tuple[Any, str], Fixed] = {}
        self._containers: dict[int, tuple[str, Any, Any]] = {}

    @property
    def fixed(self) -> tuple[Fixed, ...]:
        return tuple(self._fixed.values())

    def of_attribute(self, module: nn.Module, name: str, value: Any) -> Any:
        """What a forward gets for an attribute of a module."""
        path = self._paths[id(module)]
        if name == "__dict__":
            raise self.watch.stop("its forward reads __dict__")
        if name == "training":
            if id(module) not in self._own:
                raise self.watch.stop(f"its forward asks for the mode of {path}")
            return value
        if (
            name in _OF_EVERY_MODULE
            or name.startswith("__")
            or isinstance(value, nn.Module | types.MethodType | fx.Proxy)
        ):
            return value
        if activations.of_module(module) is not None:
            raise self.watch.stop(f"its forward reads {name} of the activation {path}")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if self._live is not None and (number or isinstance(value, Tensor)):
            return self._live(f"{path}.{name}" if path else name)
        if not isinstance(value, Tensor):
            self._fix(path, name, value)
        return value

    def _fix(self, holder: str | ModuleType, name: str, value: Any) -> None:
        self._remember(name, value)
        try:
            copied = plain(value)
        except TypeError as error:
            where = "attribute" if isinstance(holder, str) else "global"
            reason = f"its forward reads the {where} {name}, a {error}, which may change"
            # What a class in Python does when it is called is looked at; what one in C does is not.
            if not hasattr(value, "__dict__"):
                raise self.watch.stop(reason) from error
            self.watch.doubt(reason)
            return
        key = (holder if isinstance(holder, str) else id(holder), name)
        if key not in self._fixed:
            self._fixed[key] = Fixed(holder, name, copied)

    def _remember(self, name: str, value: Any) -> None:
        """Copy the containers in a value, each flat."""
        waiting = [value]
        while waiting:
            part = waiting.pop()
            atom = isinstance(part, (*_ATOMS, *_FUNCTIONS, ModuleType, Tensor, nn.Module))
            if not atom and id(part) not in self._containers:
                self._containers[id(part)] = (name, part, _flat(part))
                waiting += _parts(part)

    def _enter(self, frame: FrameType) -> None:
        values = frame.f_globals
        if "new_forward_fixed" in values:
            return
        module = sys.modules.get(values.get("__name__", ""))
        for name in globals_of(frame.f_code):
            value = values.get(name, _NOTHING)
            if value is _NOTHING or isinstance(value, (*_FUNCTIONS, ModuleType, Tensor, nn.Module)):
                continue
            if type(value).__module__ in ("typing", "types", "torch.jit", "torch._ops", "functools"):
                continue
            if module is None or vars(module) is not values:
                raise self.watch.stop(f"its forward reads the global {name} of no module that can be found")
            self._fix(module, name, value)
        for name in frame.f_code.co_freevars:
            value = frame.f_locals.get(name)
            if _is_of_caller(name, frame) or isinstance(value, (ModuleType, Tensor, nn.Module)):
                continue
            self._remember(name, value)
            try:
                plain(value)
            except TypeError as error:
                raise self.watch.stop(f"its forward reads {name}, a {error} that lives outside of it") from error

    def put_back(self) -> None:
        """Undo what the trace wrote into containers.

        Raises:
            NotTraceableError: it wrote into one.
        """
        changed = ""
        for name, container, before in self._containers.values():
            now = _flat(container)
            if len(now) == len(before) and all(map(operator.is_, now, before)):
                continue
            changed = changed or name
            if isinstance(container, list | set | dict):
                container.clear()
                pairs = zip(before[::2], before[1::2], strict=True)
                (container.extend if isinstance(container, list) else container.update)(
                    pairs if isinstance(container, dict) else before
                )
        if changed:
            raise NotTraceableError(f"its forward changes {changed}")


def _flat(value: Any) -> list[Any]:
    """What a container holds: of a dictionary, keys and values in turn; of another object, its attributes' values."""
    if isinstance(value, dict):
        return list(itertools.chain.from_iterable(value.items()))
    return list(value) if isinstance(value, list | tuple | set | frozenset) else _parts(value)


def _parts(value: Any) -> list[Any]:
    if isinstance(value, dict | list | tuple | set | frozenset):
        return _flat(value)
    return list(vars(value).values()) if hasattr(value, "__dict__") else []


def _is_of_caller(name: str, frame: FrameType) -> bool:
    """Whether a name of an enclosing function is one of a function that runs now, not of one that ran before."""
    caller = frame.f_back
    while caller is not None and caller.f_code is not fx.Tracer.trace.__code__:
        if is_users(caller) and name in caller.f_code.co_cellvars:
            return True
        caller = caller.f_back
    return False


_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_current = threading.local()


def _read(self: Any, name: str) -> Any:
    cls = type.__getattribute__(object.__getattribute__(self, "__class__"), "__bases__")[0]
    value = cls.__getattribute__(self, name)
    return _current.reads.of_attribute(self, name, value) if is_users(sys._getframe(1)) else value


def _reading(cls: type) -> type:
    members = {"__getattribute__": _read, "__module__": cls.__module__, "__qualname__": cls.__qualname__}
    return type(cls.__name__, (cls,), members)


@contextmanager
def reading(root: nn.Module, reads: Reads) -> Iterator[None]:
    """Show ``reads`` every attribute that the forwards of the modules in root read."""
    before = [(module, type(module)) for module in root.modules() if not isinstance(module, torch.jit.ScriptModule)]
    classes = {cls: _reading(cls) for cls in {cls for _, cls in before}}
    previous = getattr(_current, "reads", None)
    try:
        _current.reads = reads
        for module, cls in before:
            object.__setattr__(module, "__class__", classes[cls])
        yield
    finally:
        for module, cls in before:
            object.__setattr__(module, "__class__", cls)
        _current.reads = previous
        reads.put_back()
