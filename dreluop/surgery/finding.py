"""The output layer and the first layer of a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn

from dreluop.surgery import graphs

# What may be between the output layer and what the model returns.
_AFTER_OUTPUT = (
    nn.Softmax, nn.LogSoftmax, nn.Sigmoid, nn.Identity, nn.Flatten, nn.Unflatten, nn.modules.dropout._DropoutNd,
)  # fmt: skip
_AFTER_OUTPUT_CALLS = (
    torch.flatten, torch.softmax, torch.log_softmax, torch.sigmoid, torch.squeeze, torch.reshape,
    nn.functional.softmax, nn.functional.log_softmax, nn.functional.dropout,
    "flatten", "softmax", "log_softmax", "sigmoid", "squeeze", "view", "reshape", "float",
)  # fmt: skip


def output_layer(model: nn.Module) -> nn.Module:
    """The layer whose output the model returns in eval mode."""
    found = _returned(model, model)
    if isinstance(found, nn.Module):
        return found
    raise ValueError(f"layer: what a {type(model).__name__} returns comes from no single layer; name it with layer=")


def _returned(module: nn.Module, model: nn.Module) -> nn.Module | fx.Node | None:
    """The layer whose output a module returns, or the placeholder of the argument that it returns; None: neither."""
    value: Any = _graph(module, model, "output").output_node().args[0]
    while isinstance(value, fx.Node) and value.op != "placeholder":
        position, name = 0, "input"
        if value.op != "call_module" and value.target not in _AFTER_OUTPUT_CALLS:
            return None
        child = module.get_submodule(str(value.target)) if value.op == "call_module" else None
        if child is not None and not isinstance(child, _AFTER_OUTPUT):
            found = child if isinstance(child, nn.Linear) or _is_torchs(child) else _returned(child, model)
            if not isinstance(found, fx.Node):
                return found
            position, name = found.graph.find_nodes(op="placeholder").index(found), str(found.target)
        value = value.args[position] if position < len(value.args) else value.kwargs.get(name)
    return value if isinstance(value, fx.Node) else None


def first_layer(model: nn.Module) -> nn.Module:
    first = next(_layers_in_order(model, model), None)
    if first is None:
        raise ValueError(f"layer: no layer with weights is found in a {type(model).__name__}; name it with layer=")
    return first


def _layers_in_order(module: nn.Module, model: nn.Module) -> Iterator[nn.Module]:
    """The layers with weights in the order in which they run."""
    if next(module.parameters(), None) is None:
        return
    if module is not model and (isinstance(module, nn.Conv2d | nn.Linear) or _is_torchs(module)):
        yield module
        return
    for node in _graph(module, model, "first").nodes:
        if node.op == "call_module":
            yield from _layers_in_order(module.get_submodule(str(node.target)), model)
        elif node.op == "get_attr" and node.target in module._parameters:
            yield module


def _graph(module: nn.Module, model: nn.Module, which: str) -> fx.Graph:
    try:
        if _is_torchs(module):
            raise ValueError("it is one of torch's own layers, which layer='' names")
        return graphs.trace(module, training=False)
    except ValueError as error:
        path = next(name for name, part in model.named_modules() if part is module)
        where = f"{repr(path) if path else 'the model'} is a {graphs.path_of_class(module)}"
        raise ValueError(f"layer: the {which} layer cannot be found ({error}; {where}); name it with layer=") from error


def _is_torchs(module: nn.Module) -> bool:
    """Whether a module is one of torch's layers, which is not looked into."""
    forward = getattr(type(module), "forward", None)
    # A GraphModule's forward names no module.
    where = getattr(forward, "__module__", None) or ""
    return forward is not nn.Sequential.forward and where.startswith("torch.nn.modules.")
