"""The forward of one module as a graph of torch.fx, in which its children are calls."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError


class Tracer(fx.Tracer):
    """Reads which children run and in which order. What else a forward does may be missing in the graph."""

    # Otherwise the trace computes with the tensors themselves, and may write to them.
    proxy_buffer_attributes = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def path_of_module(self, mod: nn.Module) -> str:
        if mod not in (self.submodule_paths or {}):
            raise TraceError(f"it calls a {type(mod).__name__} that is no submodule of it; hold it in an nn.ModuleList")
        return super().path_of_module(mod)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        function, args = super().create_args_for_root(root_fn, is_module, concrete_args)
        for name, value in vars(self.root).items():
            if isinstance(value, Tensor):
                vars(self.root)[name] = self.create_proxy("get_attr", name, (), {})
        return function, [args[0], *map(self.argument, args[1:])]

    def argument(self, value: Any) -> Any:
        """What the forward gets for one argument: fx cannot unpack ``*args``, so they are taken to be one."""
        target = str(value.node.target) if isinstance(value, fx.Proxy) else ""
        return {} if target.startswith("**") else (value,) if target.startswith("*") else value


def trace(module: nn.Module, training: bool, *, tracer: type[Tracer] = Tracer, defaults: bool = True) -> fx.Graph:
    """The graph of a module's forward.

    Args:
        module: left as it is.
        training: the mode.
        tracer: how to trace.
        defaults: take optional arguments at their default, which the graph then asserts.

    Raises:
        ValueError: torch.fx cannot trace the forward; says why.
    """
    if isinstance(module, torch.jit.ScriptModule):
        raise ValueError("it is a TorchScript module")
    if "forward" in vars(module):
        raise ValueError("its forward is set on the instance")
    # A baseline, as the forward may set attributes.
    baseline = object.__new__(type(module))
    vars(baseline).update(_copied(vars(module)), training=training)
    fixed = optional_arguments(module) if defaults else {}
    try:
        with torch.random.fork_rng(devices=[]):
            graph = tracer().trace(baseline, fixed)
    except Exception as error:  # the forward is the user's: a trace may end in any error
        kind = "" if isinstance(error, TraceError) else f"{type(error).__name__}: "
        raise ValueError(kind + str(error).strip().partition("\n")[0]) from error
    # fx renames the arguments that it takes at a value, but callers may pass them by name.
    names = {f"{name}_1": name for name in fixed}
    for node in graph.find_nodes(op="placeholder"):
        node.target = names.get(node.target, node.target)
    return graph


def optional_arguments(module: nn.Module) -> dict[str, Any]:
    """The arguments of a module's forward that have a plain default, and the defaults."""
    parameters = inspect.signature(type(module).forward).parameters.values()
    return {p.name: p.default for p in parameters if isinstance(p.default, bool | int | float | str | None)}


def _copied(value: Any) -> Any:
    if type(value) is dict:
        return {key: _copied(part) for key, part in value.items()}
    return type(value)(map(_copied, value)) if type(value) in (list, tuple, set) else value


def path_of_class(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"
