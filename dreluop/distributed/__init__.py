"""DTensors: distinguished, checked, and served by torch's own engine, without importing it.

The rules by which DTensor shards the operators (``rules``) are registered when ``torch.distributed.tensor`` is
imported, by whoever does so, or at once if it is there already. Torch has no place for rules of an engine that is not
loaded; to load it takes time that nobody should pay who has one process; and to wait for the first call of ours with a
DTensor would leave out operators that are called directly, as compiled and exported programs do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from dreluop.distributed.imports import after_import

ENGINE = "torch.distributed.tensor"

# Empty until the engine is imported: nothing can be a DTensor before.
_dtensor: tuple[type, ...] = ()
# Why the rules could not be registered.
_error: Exception | None = None


def install() -> None:
    """Register the sharding rules as soon as there can be a DTensor. Called once, when all operators are defined."""
    after_import(ENGINE, _register)


def _register() -> None:
    global _dtensor, _error  # noqa: PLW0603 (a tuple that isinstance takes, and that torch.compile guards on)
    from torch.distributed.tensor import DTensor  # noqa: PLC0415 (imported by others, by now)

    _dtensor = (DTensor,)
    try:
        from dreluop.distributed import rules  # noqa: PLC0415 (imports the engine)

        rules.register()
    except Exception as error:
        # The import of torch's module must not fail because of ours.
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
