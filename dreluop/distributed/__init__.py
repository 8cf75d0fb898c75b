"""Sharding rules for the operators, so that torch's own engine runs them on DTensors.

The rules (``rules``) are registered when ``torch.distributed.tensor`` is imported, by whoever does so, or at once if it
is there already. Torch cannot take rules before its engine is loaded. Loading it takes time that a user of one process
should not pay. Waiting for our first call with a DTensor would miss operators that are called directly, as compiled and
exported programs do.
"""

from __future__ import annotations

from dreluop._internal import dtensor
from dreluop._internal.dtensor import full_tensor
from dreluop.distributed.import_hook import after_import

__all__ = ["full_tensor", "install"]

ENGINE = "torch.distributed.tensor"


def install() -> None:
    """Register the sharding rules as soon as there can be a DTensor. Called once, when all operators are defined."""
    after_import(ENGINE, _register)


def _register() -> None:
    from torch.distributed.tensor import DTensor  # noqa: PLC0415 (imported by others, by now)

    dtensor.imported(DTensor)
    try:
        from dreluop.distributed import mask_mode, rules  # noqa: PLC0415 (imports the engine)

        rules.register()
        dtensor.on_local_tensors = mask_mode.on_local_tensors
    except Exception as error:
        # The import of torch's module must not fail because of ours.
        dtensor.rules_failed(error)
