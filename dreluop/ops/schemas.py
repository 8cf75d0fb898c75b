"""The one list of operator schemas. Backends, in Python or C++, only add implementations to it.

==================  =====================================================================================
operator            what it computes (csrc/include/dreluop/semantics.h holds the scalar rule)
==================  =====================================================================================
forward             y = max(0, min(t, cap)) with t = (x + bias) + residual, in fp32 (fp64), rounded once
forward_           the same, written over x
forward_extra       y, with a 2-bit code per element and the penalty, each an empty tensor when not asked for
forward_extra_     the same, written over x
backward            gradients to x (and residual), cap and bias from the gradient of y and what forward saved
                    (y, or the code); ``bias`` is given where its gradient is wanted, and never read
tangent             u where x is inside, v where it is capped: the forward-mode derivative, and the derivative
                    of ``backward`` with respect to ``grad``
surrogate           the gradient to x that attacks put in place of ``backward``'s. Without ``width``: grad where
                    ``saved`` is on, also at the cap. With it (the cap's shape), ``saved`` is x before the cap, and
                    the result is grad * (sigmoid(x / width) - sigmoid((x - cap) / width)): a box between 0 and the
                    cap with smooth ends, 0 under a cap <= 0, grad * sigmoid(x / width) under an infinite cap
saturation          counts of off, inside, capped per cap, and whether each sample has an element inside
penalty             balancer * sum of squares over a list of caps
penalty_backward    its gradients, 2 * balancer * grad * cap
==================  =====================================================================================

``saved`` is y (any strides) or the code (uint8, one dimension). ``order`` lists the dimensions of y in which the codes
lie, outermost first (``reference.code_order``); it is read only with a code. A result that is not asked
for (``need_x``, ``need_cap``, ``code``, ``balancer``) is a tensor with zero elements.

Every operator has an overload without a name, served by the default rule of ``dreluop.backends.choice``, and one for
each backend that can be chosen against that rule (``CHOSEN``). Those of ``FUSIBLE`` have one more, ``FUSED``, which
stands in a graph where torch.compile is to fuse them with their neighbours (``ops.fused``).
"""

from __future__ import annotations

import re

import torch

from dreluop.version import __version__

NAMESPACE = "dreluop"

SCHEMAS: dict[str, str] = {
    "forward": "(Tensor x, Tensor cap, int dim=1, Tensor? bias=None, Tensor? residual=None) -> Tensor",
    "forward_": "(Tensor(a!) x, Tensor cap, int dim=1, Tensor? bias=None, Tensor? residual=None) -> ()",
    "forward_extra": "(Tensor x, Tensor cap, int dim, bool code, float? balancer, Tensor? bias=None,"
    " Tensor? residual=None) -> (Tensor y, Tensor code, Tensor penalty)",
    "forward_extra_": "(Tensor(a!) x, Tensor cap, int dim, bool code, float? balancer, Tensor? bias=None,"
    " Tensor? residual=None) -> (Tensor code, Tensor penalty)",
    "backward": "(Tensor grad, Tensor saved, Tensor cap, int dim, int[] order, bool need_x, bool need_cap,"
    " float? balancer, Tensor? grad_penalty, Tensor? bias=None) -> (Tensor dx, Tensor dcap, Tensor dbias)",
    "tangent": "(Tensor u, Tensor? v, Tensor saved, Tensor cap, int dim, int[] order) -> Tensor",
    "surrogate": "(Tensor grad, Tensor saved, Tensor cap, int dim, int[] order, Tensor? width=None) -> Tensor",
    "saturation": "(Tensor x, Tensor cap, int dim=1) -> (Tensor counts, Tensor live)",
    "penalty": "(Tensor[] caps, float balancer) -> Tensor",
    "penalty_backward": "(Tensor grad, Tensor[] caps, float balancer) -> Tensor[]",
}

IN_PLACE = ("forward_", "forward_extra_")

DEFAULT = ""
CHOSEN = ("reference", "triton")
OVERLOADS = (DEFAULT, *CHOSEN)
# With the version: torch.compile's cache on disk knows a graph by the names in it, not by what they were traced to.
FUSED = re.sub(r"\W", "_", f"fused_{__version__}")
FUSIBLE = ("forward", "forward_")


def overloads_of(name: str) -> tuple[str, ...]:
    """All that an operator has."""
    return (*OVERLOADS, FUSED) if name in FUSIBLE else OVERLOADS


def overload(name: str, which: str) -> str:
    """``forward`` or, of a backend that was chosen, ``forward.triton``."""
    return f"{name}.{which}" if which else name


# Results have the strides that the fakes promise only if inductor hands over the strides it traced.
TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)

library = torch.library.Library(NAMESPACE, "DEF")
for _name, _signature in SCHEMAS.items():
    for _which in overloads_of(_name):
        library.define(overload(_name, _which) + _signature, tags=TAGS)
