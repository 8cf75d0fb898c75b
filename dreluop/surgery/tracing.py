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

# Where in the Python code a call stands: the bytecode offsets of all frames, and how often the place was passed before.
Place = tuple[tuple[tuple[str, str, int], ...], int]


class NotTraceableError(Exception):
    """Why a forward cannot be traced."""


@dataclass(frozen=True)
class Call:
    """An activation node of a traced graph and where it stands, which is the same in both modes."""

    node: fx.Node
    activation: Activation
    place: Place


@dataclass(frozen=True)
class Traced:
    """A graph, its activation calls, and why no code may be made from it (empty: it may)."""

    graph: fx.Graph
    calls: tuple[Call, ...]
    frozen: str = ""


def only_default(name: str, value: Any, default: Any) -> None:
    """Raise where an argument that the surgery saw at its default gets another value."""
    if isinstance(value, fx.Proxy):
        value.tracer.create_proxy("call_function", only_default, (name, value, default), {})
    elif value is not default and (isinstance(value, Tensor) or value != default):
        raise ValueError(
            f"{name}: got {type(value).__name__}; this forward was rewritten by dreluop.surgery for its default, "
            f"{default!r}, as no call in the model gave another"
        )


class _Proxy(fx.Proxy):
    """fx takes ``x += y`` for ``x = x + y``; here the write stays a write, which other holders of x see."""


def _in_place(function: Any) -> Any:
    def record(self: fx.Proxy, other: Any) -> fx.Proxy:
        made: fx.Proxy = self.tracer.create_proxy("call_function", function, (self, other), {})
        return made

    return record


for _name, _function in inplace.FUNCTIONS.items():
    setattr(_Proxy, f"__{_name}__", _in_place(_function))


class _OwnForward(fx.Tracer):
    def __init__(self, inlined: frozenset[int], given: frozenset[str] | None) -> None:
        super().__init__()
        self._inlined = inlined
        self._given = given
        self._passes: Counter[Any] = Counter()
        self.calls: list[Call] = []
        self.frozen = ""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return id(m) not in self._inlined

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any) -> fx.Node:
        node = super().create_node(kind, target, args, kwargs, *rest, **more)
        found = None
        if kind == "call_module":
            found = activations.of_module(self.root.get_submodule(target))
        elif kind in ("call_function", "call_method"):
            found = activations.of_call(target, args, kwargs)
        if found is not None:
            chain = _frames(fx.Tracer.trace.__code__)
            self.calls.append(Call(node, found, (chain, self._passes[chain])))
            self._passes[chain] += 1
        return node

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
        for index, name in enumerate(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]):
            default = _default(root_fn, name)
            if index == 0 or default is inspect.Parameter.empty or name in (self._given or ()):
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
        given: names of the arguments that callers pass; others that have a default are taken at it. None: not known.

    Raises:
        NotTraceableError: with the reason.
    """
    if "forward" in vars(module):
        raise NotTraceableError("its forward is set on the instance")
    if isinstance(module, torch.jit.ScriptModule):
        raise NotTraceableError("it is a TorchScript module")
    own = [module, *inlined]
    before = [part.training for part in own]
    result = {}
    try:
        for training in (True, False):
            for part in own:
                part.training = training
            tracer = _OwnForward(frozenset(map(id, own)), given)
            graph = tracer.trace(module)
            for node in graph.nodes:
                # Under "from __future__ import annotations" a type is a string, which code made from it cannot name.
                node.type = None if isinstance(node.type, str) else node.type
            result[training] = Traced(graph, tuple(tracer.calls), tracer.frozen)
    except NotTraceableError:
        raise
    except Exception as error:  # the forward is the user's: a trace may end in any error
        raise NotTraceableError(
            f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
        ) from error
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
