"""DTensor support that does not import ``torch.distributed.tensor``: what is one, and what a call accepts.

``dreluop.distributed`` says when that module has been imported, and whether it took our sharding rules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

# Empty until the module is imported: nothing can be a DTensor before. A tuple that isinstance takes and torch.compile
# guards on.
_dtensor: tuple[type, ...] = ()
# Why the rules could not be registered.
_error: Exception | None = None
# Calls a function on the local tensors of DTensors; set with the rules.
on_local_tensors: Callable[..., Tensor] | None = None


def imported(dtensor: type) -> None:
    """From now on there can be tensors of this class."""
    global _dtensor  # noqa: PLW0603
    _dtensor = (dtensor,)


def rules_failed(error: Exception) -> None:
    global _error  # noqa: PLW0603
    _error = error


def is_distributed(value: Any) -> bool:
    return isinstance(value, _dtensor)


def any_distributed(*values: Any) -> bool:
    return bool(_dtensor) and any(isinstance(value, _dtensor) for value in values)


def full_tensor(t: Any) -> Any:
    """A DTensor as an ordinary tensor on every process; any other tensor as it is."""
    return t.full_tensor() if is_distributed(t) else t


def checked_cap(x: Any, cap: Tensor, **others: Any) -> Tensor:
    """The cap, where x and what is computed with it lie on one mesh; called where any of them is a DTensor.

    Raises:
        TypeError: DTensors and ordinary tensors are mixed. Torch would take an ordinary tensor of one element as
            replicated, and give it a DTensor, possibly a partial one, as its gradient.
        ValueError: they lie on different meshes.
        RuntimeError: this torch refused our sharding rules.
    """
    _refuse_without_rules()
    if is_distributed(x) and not is_distributed(cap) and cap.numel() == 1 and not cap.requires_grad:
        # A constant: the same for every process. Torch warns of one-element tensors that are no scalars.
        cap = cap.reshape(())
    else:
        others = {"cap": cap, **others}
    for name, other in others.items():
        if other is None:
            continue
        if is_distributed(x) != is_distributed(other):
            raise TypeError(
                f"{name}: got {_kind(other)} where x is {_kind(x)}; expected both to be DTensors "
                "(distribute_tensor, or distribute_module for a module's caps) or neither (to_local)"
            )
        if is_distributed(x) and x.device_mesh != other.device_mesh:
            raise ValueError(f"{name}: got a DTensor on {other.device_mesh}; expected the mesh of x, {x.device_mesh}")
    return cap


def refuse_mask_in_place() -> NoReturn:
    """A mask has no placement, and what serves it apart (``local``) cannot write over a DTensor."""
    raise ValueError('save: got "mask" with inplace=True for a DTensor; use save="output", or inplace=False')


def by_mesh(caps: Sequence[Tensor]) -> list[list[Tensor]]:
    """The caps in groups of one mesh each, ordinary tensors in one of their own."""
    _refuse_without_rules()
    groups: dict[Any, list[Tensor]] = {}
    for cap in caps:
        groups.setdefault(getattr(cap, "device_mesh", None), []).append(cap)
    return list(groups.values())


def _kind(tensor: Tensor) -> str:
    return "a DTensor" if is_distributed(tensor) else "an ordinary tensor"


def _refuse_without_rules() -> None:
    if _error is not None:
        raise RuntimeError(
            f"DTensors: torch {torch.__version__} did not take the sharding rules of dreluop: {_error}"
        ) from _error
