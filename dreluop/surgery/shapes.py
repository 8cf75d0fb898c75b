"""How many caps an activation needs: from the layer before it, or from a run on fake tensors."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from dreluop.modules import DReLU, SReLU
from dreluop.surgery import activations, inplace
from dreluop.surgery.sites import PendingSite
from dreluop.surgery.survey import Owner, Survey


@dataclass(frozen=True)
class Producer:
    """The layer that makes an activation's channels: their number, the dimension they lie in, the layer itself."""

    channels: int
    dim: int
    module: nn.Module


# Modules and functions whose output has the channels of their input.
_PASSING = (
    nn.Identity, nn.modules.dropout._DropoutNd, DReLU, SReLU,
    nn.SiLU, nn.GELU, nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.Hardsigmoid, nn.LeakyReLU, nn.ELU,
)  # fmt: skip
_PASSING_CALLS = (
    *(getattr(functional, name) for name in ("dropout", "dropout2d", "relu", "relu6", "hardtanh", "silu", "gelu")),
    torch.relu, torch.relu_, torch.sigmoid, torch.tanh,
)  # fmt: skip
# Those that keep dimension 1 but not the last one.
_POOLING = (
    nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd, nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd, nn.Upsample,
)  # fmt: skip
_POOLING_CALLS = tuple(
    getattr(functional, name) for name in ("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "interpolate")
)
# Of two tensors, which may be broadcast.
_PAIRS = (
    operator.add, inplace.FUNCTIONS["iadd"], torch.add, operator.mul, inplace.FUNCTIONS["imul"], torch.mul,
    operator.sub, inplace.FUNCTIONS["isub"], torch.sub,
)  # fmt: skip


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
        if node.op == "call_function" and node.target in _PAIRS:
            return self._of_pair(owner, [part for part in node.args if isinstance(part, fx.Node)])
        if node.op == "call_function" and node.target in _POOLING_CALLS:
            return _in_dim_1(self.of_value(owner, activations.input_of(node)))
        passes = node.target in (_PASSING_CALLS if node.op == "call_function" else ("relu", "relu_", "contiguous"))
        return self.of_value(owner, activations.input_of(node)) if passes else None

    def _of_pair(self, owner: Owner, parts: list[fx.Node]) -> Producer | None:
        found = [self.of_value(owner, part) for part in dict.fromkeys(parts)]
        known = [one for one in found if one is not None]
        # One channel is spread over those of the other, which may be more where they are not known.
        wide = _agreed([one for one in known if one.channels > 1])
        if wide is not None:
            return wide if all(one.dim == wide.dim for one in known) else None
        return None if None in found else _agreed(known)

    def _of_argument(self, owner: Owner, node: fx.Node) -> Producer | None:
        # Train and eval mode may both hold a call of this module: the same one.
        if owner.called_unseen:
            return None
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
            return _agreed([self._returned(inner, mode) for mode in ((True, False) if _differ(inner) else (False,))])
        value = activations.input_of(node)
        if _is_of_torch(module, _POOLING):
            return _in_dim_1(self.of_value(owner, value))
        passes = _keeps(module) or _is_of_torch(module, _PASSING) or activations.of_module(module) is not None
        return self.of_value(owner, value) if passes else None

    def _returned(self, owner: Owner, training: bool) -> Producer | None:
        assert owner.traced is not None
        output = next(n for n in reversed(owner.traced[training].graph.nodes) if n.op == "output")
        return self.of_value(owner, output.args[0]) if isinstance(output.args[0], fx.Node) else None


def _differ(owner: Owner) -> bool:
    return owner.traced is not None and owner.traced[True] is not owner.traced[False]


def _agreed(found: Sequence[Producer | None]) -> Producer | None:
    """The one that all give; None where one is not known, or two differ."""
    facts = {(part.channels, part.dim) if part is not None else None for part in found}
    return found[0] if len(facts) == 1 else None


def _in_dim_1(found: Producer | None) -> Producer | None:
    return found if found is not None and found.dim == 1 else None


def _is_of_torch(module: nn.Module, kinds: Any) -> bool:
    """Whether a module computes what torch's class computes: a subclass may have a forward of its own."""
    forward = activations.forward_of(module)
    return isinstance(module, kinds) and forward is not None and forward.__module__.startswith(("torch.", "dreluop."))


def _keeps(module: nn.Module) -> bool:
    """Whether it is a normalisation that takes any number of channels, or one over more than the last dimension."""
    if _is_of_torch(module, nn.modules.batchnorm._NormBase):
        return module.weight is None and module.running_mean is None
    return _is_of_torch(module, nn.LayerNorm) and len(module.normalized_shape) > 1  # type: ignore[arg-type]


def made_by(module: nn.Module) -> Producer | None:
    """The channels that one of torch's layers makes, and where: after a Linear or LayerNorm they come last."""
    if _keeps(module):
        return None
    for kind, number, dim in _MAKERS:
        if _is_of_torch(module, kind):
            return Producer(number(module), dim, module)
    return None


_MAKERS: tuple[tuple[Any, Callable[[Any], int], int], ...] = (
    (nn.modules.conv._ConvNd, lambda module: module.out_channels, 1),
    (nn.modules.batchnorm._NormBase, lambda module: module.num_features, 1),
    (nn.GroupNorm, lambda module: module.num_channels, 1),
    (nn.Linear, lambda module: module.out_features, -1),
    (nn.LayerNorm, lambda module: module.normalized_shape[-1], -1),
)


def run(model: nn.Module, example_input: Any, training: bool) -> None:
    """One forward pass on a copy, which shares the parameters and what placeholders note.

    Without arithmetic, on fake tensors, but where control flow needs the data.
    """
    from torch._subclasses import fake_tensor  # noqa: PLC0415 (slow to import)

    depends = (fake_tensor.DataDependentOutputException, fake_tensor.DynamicOutputShapeException)
    try:
        _run_on_fakes(_copied(model), example_input, training)
    except depends:
        copied = _copied(model).train(training)
        with torch.random.fork_rng(), torch.no_grad():
            _call(copied, {}, _mapped(example_input, lambda value: _of_two(value) if training else value))


def _copied(model: nn.Module) -> nn.Module:
    """What a forward writes into attributes must not stay."""
    kept: list[Any] = [*model.parameters(), *(m.shapes for m in model.modules() if isinstance(m, PendingSite))]
    try:
        return copy.deepcopy(model, {id(one): one for one in kept})
    except Exception as error:  # what a user's modules hold may refuse to be copied in any way
        raise ValueError(f"the model cannot be copied: {error}") from error


def _of_two(value: Tensor) -> Tensor:
    """Batch norm in training needs more than one value per channel."""
    return torch.cat([value, value]) if value.shape[:1] == (1,) else value


def _mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: _mapped(part, function) for key, part in value.items()}
    return type(value)(_mapped(part, function) for part in value) if isinstance(value, tuple | list) else value


def _call(model: nn.Module, tensors: dict[str, Tensor], arguments: Any) -> None:
    if isinstance(arguments, Mapping):
        torch.func.functional_call(model, tensors, (), dict(arguments))
    else:
        given = tuple(arguments) if isinstance(arguments, tuple | list) else (arguments,)
        torch.func.functional_call(model, tensors, given)


def _run_on_fakes(model: nn.Module, example_input: Any, training: bool) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: PLC0415 (slow to import)

    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.random.fork_rng(devices=[]), torch.no_grad():

        def fake(value: Tensor) -> Tensor:
            value = mode.from_tensor(value.detach())
            return value.new_empty((2, *value.shape[1:])) if training and value.shape[:1] == (1,) else value

        tensors = dict([*model.named_parameters(), *model.named_buffers()])
        fakes: dict[str, Tensor] = {name: mode.from_tensor(tensor.detach()) for name, tensor in tensors.items()}
        _call(model.train(training), fakes, _mapped(example_input, fake))
