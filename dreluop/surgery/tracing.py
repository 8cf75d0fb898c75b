"""Tracing the forward of one module, its children being calls, in train and in eval mode."""

from __future__ import annotations

import inspect
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import CodeType
from typing import Any

import torch
from torch import Tensor, fx, nn

from dreluop.surgery import activations, inplace
from dreluop.surgery.activations import Activation
from dreluop.surgery.effects import NotTraceableError, asked_for_none, is_users, is_users_file, watching
from dreluop.surgery.fixed import Fixed, Reads, reading

# Where in the Python code a call stands: the bytecode offsets of all frames, and how often the place was passed before.
Place = tuple[tuple[tuple[str, str, int], ...], int]


@dataclass(frozen=True)
class Call:
    """An activation node of a traced graph and where it stands, which is the same in both modes.

    Attributes:
        inside: the path of the descendant whose forward makes the call, if it became part of the graph.
    """

    node: fx.Node
    activation: Activation
    place: Place
    inside: str = ""


@dataclass(frozen=True)
class Traced:
    """A graph of a forward.

    Attributes:
        frozen: why no code may be made from it; empty: it may.
        partial: the forward may go other ways.
        fixed: the values beside the inputs that it holds.
    """

    graph: fx.Graph
    calls: tuple[Call, ...]
    frozen: str = ""
    partial: bool = False
    fixed: tuple[Fixed, ...] = ()


def only_default(name: str, value: Any, default: Any) -> None:
    """Raise where an argument that the surgery saw at its default gets another value."""
    if isinstance(value, fx.Proxy):
        value.tracer.create_proxy("call_function", only_default, (name, value, default), {})
    elif value is not default and (isinstance(value, Tensor) or value != default):
        raise ValueError(
            f"{name}: got {type(value).__name__}; this forward was rewritten by dreluop.surgery for its default, "
            f"{default!r}, as no call in the model gave another"
        )


def not_none(name: str, value: Any) -> None:
    """Raise where an argument that the surgery saw as a value is None."""
    if isinstance(value, fx.Proxy):
        value.tracer.create_proxy("call_function", not_none, (name, value), {})
    elif value is None:
        raise ValueError(f"{name}: got None; this forward was rewritten by dreluop.surgery for another value")


class _Asked:
    """A proxy is no Tensor, list or number, and has every attribute: to ask it would give an answer of the trace."""

    tracer: _OwnForward

    def _asked(self) -> None:
        self.tracer.watch.doubt("its forward asks for the type of an input")

    @property
    def __class__(self) -> type:
        frame = sys._getframe(1)
        # torch.nn.Parameter answers in Python.
        if is_users(frame) or (frame.f_code.co_name == "__instancecheck__" and is_users(frame.f_back)):
            self._asked()
        return type(self)

    @__class__.setter
    def __class__(self, cls: type) -> None:
        object.__setattr__(self, "__class__", cls)


class _Attribute(_Asked, fx.proxy.Attribute):  # type: ignore[misc]
    """Of a proxy, such as its shape."""


class _Proxy(_Asked, fx.Proxy):  # type: ignore[misc]
    """fx takes ``x += y`` for ``x = x + y``; here the write stays a write, which other holders of x see."""

    def __getattr__(self, name: str) -> Any:
        if self.tracer.watch.asking:
            self.tracer.watch.doubt("its forward asks whether an input has an attribute")
        return _Attribute(self, name)


class _Live(_Proxy):
    """Stands for a number of the module, which code that looks it up or asks for its type needs itself."""

    def __hash__(self) -> int:
        if is_users(sys._getframe(1)):
            raise TypeError("a number of the module is looked up")
        return super().__hash__()

    def _asked(self) -> None:
        raise TypeError("a number of the module is asked for its type")


def _in_place(function: Any) -> Any:
    def record(self: fx.Proxy, other: Any) -> fx.Proxy:
        made: fx.Proxy = self.tracer.create_proxy("call_function", function, (self, other), {})
        return made

    return record


for _name, _function in inplace.FUNCTIONS.items():
    setattr(_Proxy, f"__{_name}__", _in_place(_function))


class _OwnForward(fx.Tracer):
    # Else a buffer is a tensor that the trace computes with, and writes to.
    proxy_buffer_attributes = True

    def __init__(self, module: nn.Module, own: list[nn.Module], given: frozenset[str] | None, live: bool) -> None:
        super().__init__()
        self._inlined = frozenset(map(id, own))
        self._given = given
        self.reads = Reads(module, own, self._live if live else None)
        self.watch = self.reads.watch
        self._passes: Counter[Any] = Counter()
        self.calls: list[Call] = []
        self.frozen = ""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return id(m) not in self._inlined

    def _inside(self) -> str:
        paths = [path.partition("@")[0] for path in self.module_stack]
        return next((path for path in paths if path and id(self.root.get_submodule(path)) in self._inlined), "")

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any) -> fx.Node:
        node = super().create_node(kind, target, args, kwargs, *rest, **more)
        self.watch.note_context()
        found = None
        if kind == "call_module":
            found = activations.of_module(self.root.get_submodule(target))
        elif kind in ("call_function", "call_method"):
            found = activations.of_call(target, args, kwargs)
        if found is not None:
            chain = _frames(fx.Tracer.trace.__code__)
            self.calls.append(Call(node, found, (chain, self._passes[chain]), self._inside()))
            self._passes[chain] += 1
        return node

    def _live(self, path: str) -> fx.Proxy:
        return _Live(self.create_node("get_attr", path, (), {}), self)

    def create_arg(self, a: Any) -> Any:
        known = not isinstance(a, Tensor) or isinstance(a, nn.Parameter) or a in self.tensor_attrs
        if not known and not any(a is buffer for buffer in self.root.buffers()):
            # The calls can be counted, but the code that a trace gives would hold the tensor of today.
            self.frozen = "its forward makes a tensor that depends on no input, which a trace would freeze"
            return self.create_node("get_attr", "frozen", (), {})
        return super().create_arg(a)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        function, args = super().create_args_for_root(root_fn, is_module, concrete_args)
        code = inspect.unwrap(root_fn).__code__
        if code is not getattr(root_fn, "__code__", None) and not is_users_file(root_fn.__code__.co_filename):
            self.frozen = "its forward is decorated"
        asked = asked_for_none(code)
        for index, name in enumerate(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]):
            default = _default(root_fn, name)
            if index == 0:
                continue
            if default is inspect.Parameter.empty or name in (self._given or ()):
                if self._given is not None and name not in self._given:
                    raise NotTraceableError(f"its caller passes None for {name}")
                if name in asked:
                    self.create_node("call_function", not_none, (name, args[index].node), {})
                continue
            if self._given is None:
                raise NotTraceableError(f"its caller could not be traced, so whether it passes {name} is not known")
            if default is not None and not isinstance(default, bool | int | float | str):
                raise NotTraceableError(f"its argument {name} has the default {default!r}")
            self.create_node("call_function", only_default, (name, args[index].node, default), {})
            args[index] = default
        return function, args


def _default(function: Any, name: str) -> Any:
    return inspect.signature(inspect.unwrap(function)).parameters[name].default


def _frames(until: CodeType) -> tuple[tuple[str, str, int], ...]:
    chain = []
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_code is not until:
        chain.append((frame.f_code.co_filename, frame.f_code.co_name, frame.f_lasti))
        frame = frame.f_back
    return tuple(chain)


def trace(module: nn.Module, inlined: Iterable[nn.Module], given: frozenset[str] | None) -> Mapping[bool, Traced]:
    """The forward of a module in train (True) and eval (False) mode; its children are calls, but for the inlined ones.

    Args:
        module: left as it is.
        inlined: descendants whose own forward becomes part of the graph.
        given: names of the arguments that callers pass (not as None); others that have a default are taken at it. None:
            not known.

    Raises:
        NotTraceableError: with the reason.
    """
    if "forward" in vars(module):
        raise NotTraceableError("its forward is set on the instance")
    if isinstance(module, torch.jit.ScriptModule):
        raise NotTraceableError("it is a TorchScript module")
    own = [module, *inlined]
    try:
        return _both_modes(module, own, given, live=True)
    except (NotTraceableError, RecursionError):
        raise
    except Exception:  # the forward is the user's: a trace may end in any error
        # A number that decides where the forward goes cannot be read anew.
        try:
            return _both_modes(module, own, given, live=False)
        except NotTraceableError:
            raise
        except Exception as error:
            raise NotTraceableError(
                f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
            ) from error


def _both_modes(
    module: nn.Module, own: list[nn.Module], given: frozenset[str] | None, live: bool
) -> Mapping[bool, Traced]:
    before = [part.training for part in own]
    result = {}
    try:
        for training in (True, False):
            for part in own:
                part.training = training
            tracer = _OwnForward(module, own, given, live)
            with reading(module, tracer.reads), watching(tracer.watch):
                graph = tracer.trace(module)
            for node in graph.nodes:
                # Under "from __future__ import annotations" a type is a string, which code made from it cannot name.
                node.type = None if isinstance(node.type, str) else node.type
            watch = tracer.watch
            frozen = tracer.frozen or watch.question or watch.context
            result[training] = Traced(graph, tuple(tracer.calls), frozen, bool(watch.question), tracer.reads.fixed)
    finally:
        for part, training in zip(own, before, strict=True):
            part.training = training
    return result


def chain(module: nn.Module, targets: Iterable[str]) -> Mapping[bool, Traced]:
    """The graph of a container that calls these children one after another."""
    graph = fx.Graph()
    node = graph.placeholder("input")
    calls = []
    for position, target in enumerate(targets):
        node = graph.call_module(target, (node,))
        found = activations.of_module(module.get_submodule(target))
        if found is not None:
            calls.append(Call(node, found, ((), position)))
    graph.output(node)
    traced = Traced(graph, tuple(calls))
    return {True: traced, False: traced}
