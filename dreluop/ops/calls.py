"""The operators, bound once: resolving `torch.ops.<namespace>.<name>` on every call costs more than a small kernel."""

from __future__ import annotations

import torch

from dreluop.ops import schemas

_namespace = getattr(torch.ops, schemas.NAMESPACE)

forward = _namespace.forward.default
forward_ = _namespace.forward_.default
forward_extra = _namespace.forward_extra.default
forward_extra_ = _namespace.forward_extra_.default
backward = _namespace.backward.default
tangent = _namespace.tangent.default
saturation = _namespace.saturation.default
penalty = _namespace.penalty.default
penalty_backward = _namespace.penalty_backward.default
