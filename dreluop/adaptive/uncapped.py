"""A model without its caps: a copy of its structure that shares its parameters."""

from __future__ import annotations

import copy
import types
from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import prune

from dreluop._internal.cap_state import LearnedCap
from dreluop.caps import flat
from dreluop.modules import DReLU, SReLU
from dreluop.ops.composite import fused_sum

Model = TypeVar("Model", bound=nn.Module)


class UncappedReLU(nn.Module):
    """A ReLU that is called like the capped activation in whose place it stands: ``act(x, residual, bias=bias)``.

    Bias and residual are added as in ``dreluop.capped_relu``, by plain PyTorch operators.
    """

    def __init__(self, dim: int = 1, inplace: bool = False) -> None:
        super().__init__()
        self.dim = dim
        self.inplace = inplace

    def forward(self, x: Tensor, residual: Tensor | None = None, *, bias: Tensor | None = None) -> Tensor:
        total = fused_sum(x, self.dim, bias, residual)
        if not self.inplace:
            return torch.relu(total)
        return torch.relu_(total if total is x else x.copy_(total))

    def extra_repr(self) -> str:
        return "inplace=True" if self.inplace else ""


class UncappedResidualReLU(UncappedReLU):
    """In the place of a ``dreluop.surgery`` site that adds a residual: that one may broadcast, and x may be kept."""

    def __init__(self, dim: int = 1, inplace: bool = False, sum_inplace: bool = False) -> None:
        super().__init__(dim, inplace)
        self.sum_inplace = sum_inplace

    def forward(self, x: Tensor, residual: Tensor | None = None, *, bias: Tensor | None = None) -> Tensor:
        if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype):
            return super().forward(x.add_(residual) if self.sum_inplace else x + residual, bias=bias)
        if residual is not None and not self.sum_inplace:
            return torch.relu(fused_sum(x, self.dim, bias, residual))
        return super().forward(x, residual, bias=bias)


def _stand_in_for(module: DReLU | SReLU) -> UncappedReLU:
    """
    Raises:
        TypeError: the module has a forward that no stand-in knows.
    """
    from dreluop.surgery.sites import ResidualDReLU  # noqa: PLC0415 (imports torch.fx)

    if type(module).forward is SReLU.forward:
        return UncappedReLU(module.dim, module.inplace)
    if isinstance(module, ResidualDReLU) and type(module).forward is ResidualDReLU.forward:
        return UncappedResidualReLU(module.dim, module.inplace, module.sum_inplace)
    raise TypeError(f"model: a {type(module).__name__} has a forward of its own, which no ReLU can replace")


def remove_caps(model: Model) -> Model:
    """The model with plain ReLUs in place of its ``DReLU`` and ``SReLU`` modules, for surrogate attacks.

    A view: every other parameter is the model's own, so it follows the model's training. Modules are new ones, so that
    modes and hooks set on it leave the model alone, and so are buffers (copied now), so that a batch norm of the view
    in train mode does too. Modules are found wherever the model holds them: as children, shared, in attributes, lists
    and dicts. Forward hooks are taken over, those of replaced modules too, but not those that compute the cap.

    A surrogate attack needs a loss that does not depend on the scale of the logits (such as DLR), as these are many
    times larger without caps and saturate the cross-entropy.

    Not replaced, as they cannot be seen from outside: ``capped_relu`` called in a forward, and what a closure holds.
    ``requires_grad`` belongs to the shared parameters. Of ``DistributedDataParallel`` give the ``.module``.

    Args:
        model: any module; not changed. A ``DReLU`` by itself gives an ``UncappedReLU``.

    Returns:
        The view, in the mode of the model; calls with ``residual`` and ``bias`` work as before.

    Raises:
        TypeError: model is no module, or holds a subclass of ``DReLU`` or ``SReLU`` with a forward of its own, or a
            batch norm with caps.
        ValueError: model has no DReLU or SReLU, or a parameter that has no shape yet (a lazy module).
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}; expected a torch.nn.Module")
    shared: dict[int, Any] = {}
    capped: list[DReLU | SReLU] = []
    stand_ins: dict[int, UncappedReLU] = {}
    for found in _held_by(model):
        if isinstance(found, UninitializedParameter):
            raise ValueError("model: a parameter of a lazy module has no shape yet; run the model once before")
        if isinstance(found, nn.Parameter) or (isinstance(found, Tensor) and not found.is_leaf):
            # Tensors inside a graph (of torch.nn.utils.weight_norm) are computed anew, and cannot be copied.
            shared[id(found)] = found
        elif isinstance(found, DReLU | SReLU):
            stand_ins[id(found)] = _stand_in_for(found)
            capped.append(found)
        elif isinstance(found, LearnedCap):
            raise TypeError(
                f"model: got a {type(found).__name__}, whose caps are inside its batch norm; use a DReLU apart"
            )
    if not capped:
        raise ValueError(f"model: got a {type(model).__name__} without any DReLU or SReLU; expected at least one")
    shared |= stand_ins
    for module in capped:
        shared[id(module)].__dict__.update(copy.deepcopy(_state_without_cap(module), shared))
    view: Model = copy.deepcopy(model, shared)
    for owner in flat.owners_of(capped):
        del shared[id(owner)]._parameters[flat.NAME]
    return view


def _state_without_cap(module: nn.Module) -> dict[str, Any]:
    mine = ("_parameters", "_buffers", "_modules", "init", "save", "above", "nan", "cap", "_place")
    state = {name: value for name, value in vars(module).items() if name not in mine}
    hooks = module._forward_pre_hooks
    state["_forward_pre_hooks"] = type(hooks)((key, hook) for key, hook in hooks.items() if not _computes_cap(hook))
    return state


def _computes_cap(hook: object) -> bool:
    """Whether it is a hook of torch.nn.utils (pruning, weight_norm, spectral_norm) that sets the cap."""
    if isinstance(hook, prune.BasePruningMethod):
        return hook._tensor_name == "cap"
    return type(hook).__module__.startswith("torch.nn.utils.") and getattr(hook, "name", None) == "cap"


def _held_by(root: object) -> Iterable[object]:
    """All that a deep copy of root would copy, and the root."""
    seen: dict[int, object] = {}
    waiting = [root]
    while waiting:
        found = waiting.pop()
        if id(found) in seen or isinstance(found, type | types.ModuleType | types.FunctionType | str | bytes):
            continue
        seen[id(found)] = found
        if isinstance(found, Tensor):
            continue
        if isinstance(found, dict):
            waiting += found.values()
        elif isinstance(found, list | tuple | set | frozenset):
            waiting += found
        elif isinstance(found, types.MethodType):
            waiting.append(found.__self__)
        if hasattr(found, "__dict__"):
            waiting += vars(found).values()
    return seen.values()
