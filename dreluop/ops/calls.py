"""The operators, bound once: resolving `torch.ops.<namespace>.<name>` on every call costs more than a small kernel.

Their arguments are those of `dreluop.ops.schemas`; optional ones may be left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dreluop.ops import schemas

_namespace = getattr(torch.ops, schemas.NAMESPACE)

forward: Callable[..., Tensor] = _namespace.forward.default
forward_: Callable[..., None] = _namespace.forward_.default
forward_extra: Callable[..., tuple[Tensor, Tensor, Tensor]] = _namespace.forward_extra.default
forward_extra_: Callable[..., tuple[Tensor, Tensor]] = _namespace.forward_extra_.default
backward: Callable[..., tuple[Tensor, Tensor, Tensor]] = _namespace.backward.default
tangent: Callable[[Tensor, Tensor | None, Tensor, Tensor, int, Sequence[int]], Tensor] = _namespace.tangent.default
surrogate: Callable[..., Tensor] = _namespace.surrogate.default
saturation: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]] = _namespace.saturation.default
penalty: Callable[[Sequence[Tensor], float], Tensor] = _namespace.penalty.default
penalty_backward: Callable[[Tensor, Sequence[Tensor], float], list[Tensor]] = _namespace.penalty_backward.default
