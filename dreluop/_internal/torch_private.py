"""The private names of torch that dreluop uses: one place to look when a torch release breaks it.

All of them were seen in torch 2.10, 2.11 and 2.13.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._ops import OpOverload
from torch._prims_common import is_contiguous_or_false, is_non_overlapping_and_dense_or_false
from torch._subclasses.fake_tensor import is_fake
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_map_only

__all__ = [
    "OpOverload", "TorchDispatchMode", "is_contiguous_or_false", "is_fake", "is_non_overlapping_and_dense_or_false",
    "tree_map_only",
]  # fmt: skip

# Autograd.
any_requires_grad = torch._C._any_requires_grad
set_grad_enabled = torch._C._set_grad_enabled
current_graph_task_id = torch._C._current_graph_task_id
creation_meta = torch._C._autograd._get_creation_meta
DEFAULT_CREATION = torch._C._autograd.CreationMeta.DEFAULT
unpack_dual = torch._VF._unpack_dual

# Guards and keys of the dispatcher.
BelowAutograd = torch._C._AutoDispatchBelowAutograd
BelowInPlaceOrView = torch._C._AutoDispatchBelowADInplaceOrView
DisableTorchDispatch = torch._C._DisableTorchDispatch
ExcludeKeys = torch._C._ExcludeDispatchKeyGuard
Keys = torch._C.DispatchKeySet
AFTER_AUTOGRAD = torch._C._after_autograd_keyset
AFTER_IN_PLACE_OR_VIEW = torch._C._after_ADInplaceOrView_keyset
FUNCTIONALIZE = torch._C.DispatchKeySet(torch._C.DispatchKey.Functionalize)
dispatch_modes = torch._C._len_torch_dispatch_stack
disable_modes = _disable_current_modes

# torch.func.
functorch = torch._C._functorch
Transform = torch._C._functorch.TransformType
transforms_active = torch._C._are_functorch_transforms_active


def transforms() -> list[Any]:
    """The kinds of the transforms of torch.func that are active, outermost first."""
    return [level.key() for level in functorch.get_interpreter_stack() or []] if transforms_active() else []


# Functional tensors.
is_functional_tensor = torch._is_functional_tensor
from_functional_tensor = torch._from_functional_tensor
functionalize_sync = torch._functionalize_sync
functionalize_replace = torch._functionalize_replace
functionalize_commit = torch._functionalize_commit_update

# torch.jit.trace and torch.compile.
is_tracing = torch._C._is_tracing
get_tracing_state = torch._C._get_tracing_state
set_tracing_state = torch._C._set_tracing_state  # type: ignore[attr-defined]
disable_dynamo = torch._disable_dynamo  # type: ignore[attr-defined]


def is_traced_or_fake() -> bool:
    """Whether torch.jit.trace or make_fx records what runs, or it runs on fake tensors."""
    keys = (torch._C._TorchDispatchModeKey.FAKE, torch._C._TorchDispatchModeKey.PROXY)
    return torch._C._is_tracing() or any(map(torch._C._get_dispatch_mode, keys))


def forward_level() -> int:
    """The level of forward mode that is entered; -1 for none."""
    return forward_ad._current_level


def call_when_initialized(device_type: str, function: Any) -> None:
    """Call a function once torch has initialized a kind of device: now if it has."""
    getattr(torch, device_type)._lazy_call(function)


def constant_when_compiled(function: Any) -> None:
    """Let Dynamo call a function while it traces. ``torch.compiler.assume_constant_result`` would import Dynamo."""
    function._dynamo_marked_constant = True
