"""Batch norms with caps as torch's batch norm and an activation again."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils import parametrize

from dreluop.batch_norm import _BatchNormDReLU
from dreluop.modules import DReLU
from dreluop.surgery import kinds
from dreluop.surgery.classes import changes_of
from dreluop.surgery.methods import NoSourceError, attributes_in, function_of, method, methods_of
from dreluop.surgery.sites import ACTIVATION, WITH_CAPS, InBatchNorm, call_norm

# A batch norm with caps, the name of its activation in the module that calls both, and the activation.
Split = tuple[_BatchNormDReLU, str, DReLU]


def in_sequential(module: nn.Module) -> Iterator[Split]:
    """The batch norms of a Sequential that have their activation's slot behind them."""
    if kinds.forward_of(module) is nn.Sequential.forward:
        for (_, norm), (slot, after) in itertools.pairwise(list(module._modules.items())):
            if isinstance(norm, _BatchNormDReLU) and isinstance(after, InBatchNorm):
                yield norm, slot, activation_of(norm)


def in_graph(module: nn.Module, graph: fx.Graph) -> Iterator[Split]:
    """The batch norms that surgery gave caps in the code of a module; the graph then calls their activations."""
    for node in list(graph.find_nodes(op="call_module")):
        norm = module.get_submodule(str(node.target))
        name = vars(norm).get(ACTIVATION)
        if isinstance(norm, _BatchNormDReLU) and name is not None:
            slot = _free_name(module, graph, name)
            _call_activation(graph, node, slot)
            yield norm, slot, activation_of(norm)


def in_authors_code(module: nn.Module) -> tuple[type[nn.Module], list[Split]] | None:
    """The author's class, if surgery changed no more in it than nested calls, each of an activation of its own."""
    changes = changes_of(type(module))
    if changes is None:
        return None
    apart = _Apart(module)
    for one in changes.methods:
        function = function_of(vars(one.cls)[one.name])
        assert function is not None
        try:
            old = method(one.cls, one.name, function).tree
        except NoSourceError:
            return None
        new = apart.visit(ast.parse(one.source).body[0])
        if list(map(ast.unparse, new.body)) != list(map(ast.unparse, old.body)):
            return None
    names = [name for *_, function in methods_of(changes.base) for name in attributes_in(function.__code__)]
    if any(names.count(slot) != 1 for _, slot, _ in apart.found):
        return None
    return changes.base, apart.found


class _Apart(ast.NodeTransformer):
    """Writes ``self.act(self.norm(x))`` for ``call_norm(self.norm, self.act, x)``."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self.found: list[Split] = []

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if not (isinstance(node.func, ast.Name) and node.func.id == call_norm.__name__ and len(node.args) == 3):
            return node
        norm, activation, x = node.args
        if not isinstance(norm, ast.Attribute) or not isinstance(activation, ast.Attribute):
            return node
        module = self._module._modules.get(norm.attr)
        if not isinstance(module, _BatchNormDReLU) or vars(module).get(ACTIVATION) != activation.attr:
            return node
        self.found.append((module, activation.attr, activation_of(module)))
        return ast.Call(activation, [ast.Call(norm, [x], [])], [])


def _free_name(module: nn.Module, graph: fx.Graph, name: str) -> str:
    """A name that nothing has but an activation that the graph does not call."""
    called = {node.target for node in graph.find_nodes(op="call_module")}
    for free in itertools.chain([name], (f"{name}_{number}" for number in itertools.count(1))):
        there = getattr(module, free, None)
        is_old = isinstance(there, nn.Module) and kinds.of_module(there) is not None
        if free not in called and (there is None or is_old):
            return free
    raise AssertionError


def _call_activation(graph: fx.Graph, node: fx.Node, name: str) -> None:
    users = list(node.users)
    x, *residual = node.args
    node.args = (x,)
    total = node
    with graph.inserting_after(total):
        total = graph.call_function(torch.add, (node, *residual)) if residual else node
    with graph.inserting_after(total):
        activated = graph.call_module(name, (total,))
    for user in users:
        user.replace_input_with(node, activated)


def activation_of(norm: _BatchNormDReLU) -> DReLU:
    """A D-ReLU with the caps of a batch norm."""
    activation = DReLU(1, device="meta").train(norm.training)
    activation._parameters["cap"] = _parameter(norm.cap)
    return activation


def without_caps(norm: _BatchNormDReLU) -> nn.Module:
    """Torch's batch norm with the same state and hooks; what is parametrized holds its value."""
    kind: Any = next(kind for kind in WITH_CAPS if isinstance(norm, kind))
    plain: nn.Module = kind.__new__(kind)
    vars(plain).update(
        (name, value) for name, value in vars(norm).items() if name not in ("init", "_flat_position", ACTIVATION)
    )
    made = list(norm.parametrizations) if parametrize.is_parametrized(norm) else []  # type: ignore[arg-type]
    parameters = {name: _parameter(getattr(norm, name)) for name in [*norm._parameters, *made] if name != "cap"}
    vars(plain).update(_parameters=parameters, _modules={})
    return plain


def _parameter(value: torch.Tensor | None) -> nn.Parameter | None:
    if value is None or isinstance(value, nn.Parameter):
        return value
    return nn.Parameter(value.detach().clone(), value.requires_grad)


def in_one_module(norm: nn.Module, activation: nn.Module) -> fx.GraphModule:
    """Both as one module that is called as a batch norm with caps."""
    root = nn.Module()
    root.norm, root.activation = norm, activation
    graph = fx.Graph()
    x = graph.placeholder("x")
    residual = graph.placeholder("residual", default_value=0)
    total = graph.call_function(torch.add, (graph.call_module("norm", (x,)), residual))
    graph.output(graph.call_module("activation", (total,)))
    return fx.GraphModule(root, graph, "CappedBatchNorm")
