"""The one list of operator schemas. Backends, in Python or C++, only add implementations to it.

``capped_relu``
    y = max(0, min(t, cap)) with t = (x + bias) + residual, in fp32 (fp64), rounded once.
``capped_relu_``
    The same, written over x.
``capped_relu_with_aux``
    y, the packed mask (two bits per element) and the penalty; each of the two is an empty tensor when not asked for.
``capped_relu_with_aux_``
    The same, written over x.
``capped_relu_backward``
    Gradients to x (and residual), cap and bias from the gradient of y and what forward saved (y or the mask). ``bias``
    is given where its gradient is wanted, and never read.
``capped_relu_jvp``
    u where x is inside, v where it is capped: the forward-mode derivative, and the derivative of
    ``capped_relu_backward`` with respect to ``grad``.
``capped_relu_surrogate_backward``
    The gradient to x that attacks use in place of the true one. Without ``width``: grad where ``saved`` is on, also at
    the cap. With it (the cap's shape), ``saved`` is x before the cap, and the result is
    grad * (sigmoid(x / width) - sigmoid((x - cap) / width)): a box between 0 and the cap with smooth ends, 0 under a
    cap <= 0, grad * sigmoid(x / width) under an infinite cap.
``cap_saturation``
    Counts of off, inside and capped elements per cap, and whether each sample has an element inside.
``cap_penalty``
    balancer * sum of squares over a list of caps.
``cap_penalty_backward``
    Its gradients, 2 * balancer * grad * cap.

``capped_batch_norm``
    Batch norm over all dimensions but 1, then the activation: y = max(0, min(t, cap)) with
    t = ((x - mean) * (weight / sqrt(var + eps)) + bias) + residual, each step in fp32 (fp64), rounded once. Without
    ``mean`` and ``var`` those of the batch (biased), which are returned. ``packed`` has the regions of y, in x's memory
    order.
``capped_batch_norm_backward``
    Its gradients, from x and the mean and variance that were used, which count as constants unless ``training``; the
    region is found again from x, or read from the mask, which a residual needs.

csrc/include/dreluop/semantics.h holds the scalar rule. ``zeroed`` says what else becomes +0, and then has no gradient
(``dreluop._internal.zeroed``): 1 for what is above the cap, which leaves nothing capped, 2 for NaN, 3 for both.

``saved`` is y (any strides) or the packed mask (uint8, one dimension). ``order`` lists the dimensions of y from the
outermost to the innermost in the mask (``composite.mask_order``); it is read only with a mask. A result that is not
asked for (``need_x``, ``need_cap``, ``mask``, ``balancer``) is a tensor with zero elements.

Every operator has an overload without a name, served by the default rule of ``dreluop.backends.selection``, and one for
each backend that can be chosen against that rule (``CHOSEN``). Those of ``FUSIBLE`` have one more, ``FUSED``, which
is used in a graph where torch.compile is to fuse them with their neighbors (``ops.inductor``).
"""

from __future__ import annotations

import re

import torch

from dreluop.version import __version__

NAMESPACE = "dreluop"

SCHEMAS: dict[str, str] = {
    "capped_relu": "(Tensor x, Tensor cap, int dim=1, Tensor? bias=None, Tensor? residual=None, int zeroed=0)"
    " -> Tensor",
    "capped_relu_": "(Tensor(a!) x, Tensor cap, int dim=1, Tensor? bias=None, Tensor? residual=None, int zeroed=0)"
    " -> ()",
    "capped_relu_with_aux": "(Tensor x, Tensor cap, int dim, bool mask, float? balancer, Tensor? bias=None,"
    " Tensor? residual=None, int zeroed=0) -> (Tensor y, Tensor mask, Tensor penalty)",
    "capped_relu_with_aux_": "(Tensor(a!) x, Tensor cap, int dim, bool mask, float? balancer, Tensor? bias=None,"
    " Tensor? residual=None, int zeroed=0) -> (Tensor mask, Tensor penalty)",
    "capped_relu_backward": "(Tensor grad, Tensor saved, Tensor cap, int dim, int[] order, bool need_x, bool need_cap,"
    " float? balancer, Tensor? grad_penalty, Tensor? bias=None, int zeroed=0)"
    " -> (Tensor dx, Tensor dcap, Tensor dbias)",
    "capped_relu_jvp": "(Tensor u, Tensor? v, Tensor saved, Tensor cap, int dim, int[] order, int zeroed=0) -> Tensor",
    "capped_relu_surrogate_backward": "(Tensor grad, Tensor saved, Tensor cap, int dim, int[] order,"
    " Tensor? width=None) -> Tensor",
    "cap_saturation": "(Tensor x, Tensor cap, int dim=1) -> (Tensor counts, Tensor has_gradient)",
    "cap_penalty": "(Tensor[] caps, float balancer) -> Tensor",
    "cap_penalty_backward": "(Tensor grad, Tensor[] caps, float balancer) -> Tensor[]",
}

# Of the compiled kernels and of the reference, not of Triton: only the default overload, and no derivatives.
# ``autograd.batch_norm`` calls them where nothing but plain autograd watches, and differentiable torch everywhere else.
BATCH_NORM: dict[str, str] = {
    "capped_batch_norm": "(Tensor x, Tensor cap, Tensor? weight, Tensor? bias, Tensor? mean, Tensor? var,"
    " Tensor? residual, float eps, bool mask) -> (Tensor y, Tensor batch_mean, Tensor batch_var, Tensor packed)",
    "capped_batch_norm_backward": "(Tensor grad, Tensor x, Tensor cap, Tensor? weight, Tensor? bias, Tensor mean,"
    " Tensor var, Tensor? mask, float eps, bool training, bool need_x, bool need_weight, bool need_bias, bool need_cap,"
    " bool need_residual) -> (Tensor dx, Tensor dweight, Tensor dbias, Tensor dcap, Tensor dresidual)",
}

FORWARDS = ("capped_relu", "capped_relu_", "capped_relu_with_aux", "capped_relu_with_aux_")
IN_PLACE = ("capped_relu_", "capped_relu_with_aux_")

DEFAULT = ""
CHOSEN = ("reference", "triton")
OVERLOADS = (DEFAULT, *CHOSEN)
# With the version: torch.compile's cache on disk knows a graph by the names in it, not by what they were traced to.
FUSED = re.sub(r"\W", "_", f"fused_{__version__}")
FUSIBLE = ("capped_relu", "capped_relu_")


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
for _name, _signature in BATCH_NORM.items():
    library.define(_name + _signature, tags=TAGS)
