"""``to_torch``: the same network without dreluop."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx, nn

from dreluop._internal import checks
from dreluop.caps import flat
from dreluop.caps.statistics import CappedLayer, capped_layers
from dreluop.modules import DReLU, SReLU
from dreluop.surgery import exact
from dreluop.surgery.copies import copied, substituted
from dreluop.surgery.graphs import path_of_class
from dreluop.surgery.inserting import HeadedLinear, StemmedConv2d
from dreluop.surgery.sites import ResidualDReLU

PLAIN_NAME = "CappedReLU"


def to_torch(model: nn.Module) -> nn.Module:
    """A copy of the model with torch's own modules in place of every DReLU and SReLU, for deployment without dreluop.

    A fixed layer cap > 0 (SReLU, or a frozen DReLU) becomes ``nn.Hardtanh(0, cap)``, any other
    ``relu(minimum(x, cap))``, whose cap stays a parameter (a buffer, for SReLU) of the same name; a parametrized cap
    becomes one that holds its value. What ``above`` or ``nan`` makes zero is ``masked_fill``. Modules that surgery
    rewrote become a ``torch.fx.GraphModule`` of their forward with the same children. Outputs are equal
    (``torch.equal``); the gradient at ties is torch's.

    Args:
        model: left as it is; in eval mode if a rewritten forward differs between the modes, as the copy then has the
            eval one.

    Raises:
        TypeError, ValueError: model has no capped layer, it cannot be copied, torch.fx cannot trace a rewritten
            forward, or the model is in train mode and a rewritten forward differs there.
    """
    capped_layers(model)
    copy = copied(model)
    owners = flat.owners_of(copy.modules())
    plain: nn.Module = _plain(copy, {}, {id(module): name for name, module in copy.named_modules()})
    for owner in owners:
        del owner._parameters[flat.NAME]
    return plain


def _plain(value: Any, done: dict[int, Any], names: dict[int, str]) -> Any:
    """The plain form of a module; any other object itself."""
    if not isinstance(value, nn.Module) or id(value) in done:
        return done.get(id(value), value)
    done[id(value)] = value
    # Before its children change, as a rewritten forward asks whether they are D-ReLUs.
    traced = vars(type(value)).get("rewritten") is not None or isinstance(value, HeadedLinear | StemmedConv2d)
    graph = _graph(value, names.get(id(value), "")) if traced else None
    substituted(vars(value), lambda part: _plain(part, done, names))
    if isinstance(value, DReLU | SReLU):
        done[id(value)] = _capped(value)
    elif graph is not None:
        done[id(value)] = _as_graph_module(value, graph)
    return done[id(value)]


def _capped(layer: CappedLayer) -> nn.Module:
    cap = layer.cap.detach()
    plain = layer.above == "cap" and layer.nan == "propagate"
    fixed = plain and not layer.cap.requires_grad and cap.numel() == 1 and checks.has_values(cap) and cap.item() > 0
    root = nn.Module()
    graph = fx.Graph()
    x = graph.placeholder("x")
    if isinstance(layer, ResidualDReLU):
        residual = graph.placeholder("residual")
        x = (
            graph.call_method("add_", (x, residual))
            if layer.sum_inplace
            else graph.call_function(torch.add, (x, residual))
        )
    if fixed:
        hardtanh = nn.Hardtanh(0.0, cap.item(), inplace=layer.inplace)
        if not isinstance(layer, ResidualDReLU):
            return _with_state_of(layer, hardtanh)
        root.add_module("hardtanh", hardtanh)
        graph.output(graph.call_module("hardtanh", (x,)))
        return _with_state_of(layer, fx.GraphModule(root, graph, PLAIN_NAME))
    if isinstance(layer.cap, nn.Parameter):
        root.register_parameter("cap", layer.cap)
    elif isinstance(layer, DReLU) and "cap" not in layer._buffers:
        # Made by a parametrization, which the copy does not have.
        root.register_parameter("cap", nn.Parameter(cap.clone(), layer.cap.requires_grad))
    else:
        root.register_buffer("cap", cap if layer.cap.grad_fn is not None else layer.cap)
    bound = graph.call_method("type_as", (graph.get_attr("cap"), x))
    by_channel = layer.cap.ndim == 1 and layer.cap.numel() != 1
    inplace = layer.inplace and not (isinstance(layer, ResidualDReLU) and not layer.sum_inplace)
    view = graph.call_method("transpose", (x, layer.dim, -1)) if by_channel else x
    if layer.nan == "zero":
        bound = graph.call_method("nan_to_num", (bound, 0.0, math.inf, -math.inf))
        view = _filled(graph, view, graph.call_function(torch.isnan, (view,)), 0.0, inplace)
    if layer.above == "zero":
        off = graph.call_function(torch.le, (view, 0.0))
        off = graph.call_function(torch.logical_or, (off, graph.call_function(torch.gt, (view, bound))))
        view = _filled(graph, view, off, 0.0, inplace)
        view = _filled(graph, view, graph.call_function(torch.isnan, (bound,)), math.nan, inplace)
        back = graph.call_method("transpose", (view, layer.dim, -1)) if by_channel and not inplace else view
        graph.output(x if inplace else back)
    elif inplace:
        graph.call_method("clamp_", (view,), {"max": bound})
        graph.output(graph.call_method("relu_", (x,)))
    else:
        least = graph.call_function(torch.minimum, (view, bound))
        least = graph.call_method("transpose", (least, layer.dim, -1)) if by_channel else least
        graph.output(graph.call_function(torch.relu, (least,)))
    return _with_state_of(layer, fx.GraphModule(root, graph, PLAIN_NAME))


def _filled(graph: fx.Graph, t: fx.Node, where: fx.Node, value: float, inplace: bool) -> fx.Node:
    return graph.call_method("masked_fill_" if inplace else "masked_fill", (t, where, value))


def _graph(module: nn.Module, name: str) -> fx.Graph:
    modes = {part: part.training for part in module.modules()}
    try:
        graph = eval_graph = exact.graph_of(module, module.training)
        if module.training:
            for part in modes:
                part.training = False
            eval_graph = exact.graph_of(module, False)
    except ValueError as error:
        what = f"{name!r} ({path_of_class(module)})" if name else f"a {path_of_class(module)}"
        raise ValueError(
            f"model: the forward of {what}, which surgery rewrote, cannot become a torch.fx graph ({error}); move that "
            "part of it into a submodule without activations, or deploy the model with dreluop"
        ) from error
    finally:
        for part, training in modes.items():
            part.training = training
    if str(graph) != str(eval_graph):
        what = type(module).__name__
        raise ValueError(f"model: the forward of a {what} differs between train and eval mode; call model.eval() first")
    return graph


def _as_graph_module(module: nn.Module, graph: fx.Graph) -> nn.Module:
    plain = fx.GraphModule(module, graph, type(module).__name__)
    # All that the module had, also what the graph does not use, under the same names in the same order.
    plain._modules, plain._parameters, plain._buffers = module._modules, module._parameters, module._buffers
    plain._non_persistent_buffers_set = module._non_persistent_buffers_set
    # fx made buffers of the tensors that are none.
    vars(plain).update((name, value) for name, value in vars(module).items() if isinstance(value, Tensor))
    return _with_state_of(module, plain)


def _with_state_of(old: nn.Module, new: nn.Module) -> nn.Module:
    new.training = old.training
    vars(new).update((name, value) for name, value in vars(old).items() if "_hook" in name)
    return new
