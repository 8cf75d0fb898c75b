"""A graph that may run in a forward's place: what torch.fx would drop or freeze without a word is an error here."""

from __future__ import annotations

import numbers
import operator
import pickle
import sys
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx._symbolic_trace import _assert_is_none
from torch.fx.proxy import TraceError

from dreluop.surgery import graphs
from dreluop.surgery.running import random_states

_WRITES = ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor", "imatmul")
_ASSERTIONS = (operator.eq, torch._assert, _assert_is_none)


class _Proxy(fx.Proxy):
    """A tensor. ``x += y`` stays a write, which other holders of x see; fx takes it for ``x + y``.

    It is recorded as the method: fx writes ``operator.iadd`` as the statement ``x += y``, and reads that as ``x + y``
    when the graph is unpickled.
    """

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        if not sys._getframe(1).f_globals.get("__name__", "").startswith(("torch.", "dreluop.")):
            raise TraceError("it asks for the type of an input")
        return type(self)


def _written(name: str) -> Any:
    return lambda self, other: self.tracer.create_proxy("call_method", name, (self, other), {})


for _name in _WRITES:
    setattr(_Proxy, f"__{_name}__", _written(f"__{_name}__"))


class _Tracer(graphs.Tracer):
    def __init__(self) -> None:
        super().__init__()
        self._contexts = _contexts()
        self._before: dict[str, Any] = {}

    def argument(self, value: Any) -> Any:
        return value

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        states = _comparable(*random_states())
        graph = super().trace(root, concrete_args)
        if _comparable(*random_states()) != states:
            raise TraceError("it draws random numbers that depend on no input")
        after = _state(root)
        changed = sorted(name for name in {*after, *self._before} if after.get(name) is not self._before.get(name))
        if changed:
            raise TraceError(f"it sets its attribute {', '.join(changed)}")
        # A graph names the class of its tracer, and so would a pickle.
        copied = fx.Graph()
        copied.output(copied.graph_copy(graph, {}))
        for node in copied.nodes:
            # Annotations may be strings, which generated code cannot resolve.
            node.type = None
        return copied

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        result = super().create_args_for_root(root_fn, is_module, concrete_args)
        self._before = _state(self.root)
        return result

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _contexts() != self._contexts:
            raise TraceError("it computes under torch.no_grad or torch.autocast")
        node = super().create_node(*args, **kwargs)
        first = node.args[0] if node.op == "call_method" else None
        if isinstance(first, fx.Node) and first.op == "get_attr" and _is_write(str(node.target)):
            # Unpickling traces the graph anew, and would write once, then.
            raise TraceError(f"it writes to its tensor {first.target}")
        return node

    def create_arg(self, a: Any) -> Any:
        known = not isinstance(a, Tensor) or isinstance(a, nn.Parameter) or a in self.tensor_attrs
        if not known and not any(a is buffer for buffer in self.root.buffers()):
            raise TraceError("it computes with a tensor that is neither an input nor an attribute of it")
        # Code cannot name the numbers of numpy.
        numpys = type(a).__module__ == "numpy" and isinstance(a, numbers.Number)
        return super().create_arg(a.item() if numpys else a)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return fx.Proxy(node, self) if _is_number(node) else _Proxy(node, self)


def _state(module: nn.Module) -> dict[str, Any]:
    return {**vars(module), **module._parameters, **module._buffers, **module._modules}


def _is_write(method: str) -> bool:
    return method[2:-2] in _WRITES or (method.endswith("_") and not method.endswith("__"))


def _is_number(node: fx.Node) -> bool:
    """Whether a value is a size of a tensor, or made of such: ``n += 1`` makes another number."""
    if node.op == "call_method":
        return node.target in ("size", "dim", "numel")
    if node.target is getattr:
        return node.args[1] in ("shape", "ndim")
    operands = node.all_input_nodes if getattr(node.target, "__module__", "") == "_operator" else []
    return bool(operands) and all(map(_is_number, operands))


def _contexts() -> list[bool]:
    return [torch.is_grad_enabled(), *map(torch.is_autocast_enabled, ("cpu", "cuda"))]


def _comparable(torch_state: Tensor, python_state: Any, numpy_state: Any) -> list[Any]:
    # Arrays have no one answer to whether they are equal.
    return [torch_state.tolist(), python_state, pickle.dumps(numpy_state)]


def graph_of(module: nn.Module, training: bool) -> fx.Graph:
    """A graph that computes what the module's forward computes.

    An optional argument stays one where the forward does the same for any value; else the graph asserts that it gets
    the default.

    Raises:
        ValueError: there is none; says why.
    """
    optional = graphs.optional_arguments(module)
    found, why = [], None
    for defaults in (True, False) if optional else (False,):
        try:
            found.append(graphs.trace(module, training, tracer=_Tracer, defaults=defaults))
        except ValueError as error:
            why = error
    if why is not None and not found:
        raise why
    return found[-1] if _steps(found[0], optional) == _steps(found[-1], optional) else found[0]


def _steps(graph: fx.Graph, optional: dict[str, Any]) -> list[Any]:
    """What a graph does where optional arguments have their default."""

    def given(node: fx.Node) -> Any:
        return optional.get(str(node.target), node) if node.op == "placeholder" else node

    nodes = [node for node in graph.nodes if node.op != "placeholder" and node.target not in _ASSERTIONS]
    return [
        (node.op, node.target, *(str(fx.node.map_arg(part, given)) for part in (node.args, node.kwargs)))
        for node in nodes
    ]
