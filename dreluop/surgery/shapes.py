"""How many caps an activation needs: from the layer before it, or from a run on fake tensors."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from dreluop.modules import DReLU, SReLU
from dreluop.surgery import activations, inplace
from dreluop.surgery.survey import Owner, Survey


@dataclass(frozen=True)
class Producer:
    """The layer that makes an activation's channels: their number, the dimension they lie in, the layer itself."""

    channels: int
    dim: int
    module: nn.Module


# Modules and functions whose output has the channels of their input.
_PASSING = (
    nn.Identity, nn.modules.dropout._DropoutNd, nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd, nn.modules.pooling._AdaptiveMaxPoolNd, nn.Upsample, DReLU, SReLU,
    nn.SiLU, nn.GELU, nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.Hardsigmoid, nn.LeakyReLU, nn.ELU,
)  # fmt: skip
_PASSING_CALLS = (
    *(getattr(functional, name) for name in (
        "dropout", "dropout2d", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "interpolate", "relu", "relu6",
        "hardtanh", "silu", "gelu",
    )),
    torch.relu, torch.relu_, torch.sigmoid, torch.tanh, operator.mul, torch.mul, inplace.FUNCTIONS["imul"],
)  # fmt: skip
_SUMS = (operator.add, inplace.FUNCTIONS["iadd"], torch.add)


def producer(found: Survey, owner: Owner, node: fx.Node | None) -> Producer | None:
    """The layer that gives the value of a node its channels, or None where that is not plain."""
    return _Search(found).of_value(owner, node)


class _Search:
    def __init__(self, found: Survey) -> None:
        self._found = found
        self._seen: set[fx.Node] = set()

    def of_value(self, owner: Owner, node: fx.Node | None) -> Producer | None:
        if node is None or node in self._seen:
            return None
        self._seen.add(node)
        if node.op == "placeholder":
            return self._of_argument(owner, node)
        if node.op == "call_module":
            return self._of_module(owner, node)
        if node.op == "call_function" and node.target in _SUMS:
            return _agreed(self.of_value(owner, part) for part in node.args if isinstance(part, fx.Node))
        passes = node.target in (_PASSING_CALLS if node.op == "call_function" else ("relu", "relu_", "contiguous"))
        return self.of_value(owner, activations.input_of(node)) if passes else None

    def _of_argument(self, owner: Owner, node: fx.Node) -> Producer | None:
        # Train and eval mode may both hold a call of this module: the same one.
        callers = {(caller.path, call.name): (caller, call) for caller, call in owner.callers}
        places = [n for n in node.graph.nodes if n.op == "placeholder"]
        position = places.index(node)
        results = []
        for caller, call in callers.values():
            if position >= len(call.args) or not isinstance(call.args[position], fx.Node):
                return None
            results.append(self.of_value(caller, call.args[position]))  # type: ignore[arg-type]
        return _agreed(results)

    def _of_module(self, owner: Owner, node: fx.Node) -> Producer | None:
        module = owner.child(str(node.target))
        made = made_by(module)
        if made is not None:
            return made
        inner = self._found.owners.get(id(module))
        if inner is not None and inner.traced is not None:
            output = next(n for n in reversed(inner.traced[False].graph.nodes) if n.op == "output")
            value = output.args[0]
            return self.of_value(inner, value) if isinstance(value, fx.Node) else None
        if isinstance(module, _PASSING) or activations.of_module(module) is not None:
            return self.of_value(owner, activations.input_of(node))
        return None


def _agreed(found: Iterable[Producer | None]) -> Producer | None:
    known = [part for part in found if part is not None]
    return known[0] if len({(part.channels, part.dim) for part in known}) == 1 else None


def made_by(module: nn.Module) -> Producer | None:
    """The channels that one of torch's layers makes, and where: after a Linear or LayerNorm they come last."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return Producer(module.out_channels, 1, module)
    if isinstance(module, nn.modules.batchnorm._NormBase):
        return Producer(module.num_features, 1, module)
    if isinstance(module, nn.GroupNorm):
        return Producer(module.num_channels, 1, module)
    if isinstance(module, nn.Linear):
        return Producer(module.out_features, -1, module)
    if type(module) is nn.LayerNorm:
        return Producer(module.normalized_shape[-1], -1, module)
    return None


def run_on_fakes(model: nn.Module, example_input: Any, training: bool) -> None:
    """One forward pass without arithmetic: no memory, no random numbers, no statistics of batch norm are touched."""
    from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: PLC0415 (slow to import)

    before = {module: module.training for module in model.modules()}
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.random.fork_rng(devices=[]), torch.no_grad():

        def fake(value: Any) -> Any:
            if isinstance(value, Tensor):
                value = mode.from_tensor(value.detach())
                # Batch norm in training needs more than one value per channel.
                return value.new_empty((2, *value.shape[1:])) if training and value.shape[:1] == (1,) else value
            if isinstance(value, Mapping):
                return {key: fake(part) for key, part in value.items()}
            return type(value)(map(fake, value)) if isinstance(value, tuple | list) else value

        tensors = dict([*model.named_parameters(), *model.named_buffers()])
        fakes: dict[str, Tensor] = {name: mode.from_tensor(tensor.detach()) for name, tensor in tensors.items()}
        arguments = fake(example_input)
        try:
            model.train(training)
            if isinstance(arguments, Mapping):
                torch.func.functional_call(model, fakes, (), dict(arguments))
            else:
                torch.func.functional_call(
                    model, fakes, tuple(arguments) if isinstance(arguments, tuple | list) else (arguments,)
                )
        finally:
            for module, was in before.items():
                module.training = was
