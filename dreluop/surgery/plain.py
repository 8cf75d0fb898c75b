"""``to_plain``: the same network without dreluop."""

from __future__ import annotations

import copy
import operator

import torch
from torch import fx, nn

from dreluop import validation
from dreluop.layers import CappedLayer, capped_layers
from dreluop.modules import DReLU, SReLU
from dreluop.surgery import inplace, tracing
from dreluop.surgery.inserting import HeadedLinear, StemmedConv2d
from dreluop.surgery.rewriting import NewForward
from dreluop.surgery.sites import ResidualDReLU

PLAIN_NAME = "CappedReLU"
_OPERATORS = {function: getattr(operator, name) for name, function in inplace.FUNCTIONS.items()}


def to_plain(model: nn.Module) -> nn.Module:
    """A copy of the model with torch's own modules in place of every DReLU and SReLU, for deployment without dreluop.

    A fixed layer cap > 0 (SReLU, or a frozen DReLU) becomes ``nn.Hardtanh(0, cap)``, any other
    ``relu(minimum(x, cap))``, whose cap stays a parameter (a buffer, for SReLU) of the same name; a parametrized cap
    becomes one that holds its value. Modules whose forward
    the surgery wrote anew become a ``torch.fx.GraphModule`` with the same children. Outputs are equal
    (``torch.equal``); the gradient at ties is torch's.

    Args:
        model: left as it is; in eval mode if a module's forward differs between the modes, as the copy then has the
            eval one.

    Raises:
        TypeError, ValueError: model has no capped layer, or it is in train mode and a rewritten forward differs there.
    """
    capped_layers(model)
    return _plain(copy.deepcopy(model), {})


def _plain(module: nn.Module, done: dict[int, nn.Module]) -> nn.Module:
    if id(module) in done:
        return done[id(module)]
    done[id(module)] = module
    for name, child in list(module._modules.items()):
        if child is not None:
            module._modules[name] = _plain(child, done)
    if isinstance(module, DReLU | SReLU):
        done[id(module)] = _capped(module)
    elif isinstance(vars(type(module)).get("new_forward"), NewForward) or isinstance(
        module, HeadedLinear | StemmedConv2d
    ):
        done[id(module)] = _as_graph_module(module)
    return done[id(module)]


def _capped(layer: CappedLayer) -> nn.Module:
    cap = layer.cap.detach()
    fixed = not layer.cap.requires_grad and cap.numel() == 1 and validation.has_values(cap) and cap.item() > 0
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
    view = graph.call_method("transpose", (x, layer.dim, -1)) if by_channel else x
    if layer.inplace and not (isinstance(layer, ResidualDReLU) and not layer.sum_inplace):
        graph.call_method("clamp_", (view,), {"max": bound})
        graph.output(graph.call_method("relu_", (x,)))
    else:
        least = graph.call_function(torch.minimum, (view, bound))
        least = graph.call_method("transpose", (least, layer.dim, -1)) if by_channel else least
        graph.output(graph.call_function(torch.relu, (least,)))
    return _with_state_of(layer, fx.GraphModule(root, graph, PLAIN_NAME))


def _as_graph_module(module: nn.Module) -> nn.Module:
    name = type(module).__name__

    traced = tracing.trace(module, (), frozenset(_parameters(module)))
    graphs = {training: _without_guards(one.graph) for training, one in traced.items()}
    if module.training and graphs[True].python_code("self").src != graphs[False].python_code("self").src:
        raise ValueError(f"model: the forward of a {name} differs between train and eval mode; call model.eval() first")
    plain = fx.GraphModule(module, graphs[module.training], name)
    # All that the module had, also what the graph does not use, under the same names in the same order.
    plain._modules, plain._parameters, plain._buffers = module._modules, module._parameters, module._buffers
    plain._non_persistent_buffers_set = module._non_persistent_buffers_set
    return _with_state_of(module, plain)


def _parameters(module: nn.Module) -> list[str]:
    code = type(module).forward.__code__
    return list(code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount])


def _without_guards(graph: fx.Graph) -> fx.Graph:
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target in (tracing.only_default, tracing.not_none):
            graph.erase_node(node)
        elif node.op == "call_function" and node.target in _OPERATORS:
            x = node.args[0]
            if isinstance(x, fx.Node) and len(x.users) > 1:
                # Written as x += y, a number would be another for its later users; a method fails on one.
                node.op, node.target = "call_method", f"__{node.target.__name__}__"
            else:
                node.target = _OPERATORS[node.target]
    # A copy, as the graph names its tracer, and a pickle would name it too.
    copied = fx.Graph()
    copied.output(copied.graph_copy(graph, {}))
    return copied


def _with_state_of(old: nn.Module, new: nn.Module) -> nn.Module:
    new.training = old.training
    for name in (
        "_forward_hooks",
        "_forward_pre_hooks",
        "_forward_hooks_with_kwargs",
        "_forward_pre_hooks_with_kwargs",
    ):
        setattr(new, name, getattr(old, name))
    return new
