"""What torch.compile sees of ``capped_relu``: the one place where this is decided.

It sees either operators of ours, opaque to it, with kernels of their own (``ops.schemas``), or standard operators that
it fuses with what comes before and after (``ops.inductor``): a convolution's bias, a batch norm, a residual sum.

=============================================================  ==========================================
call                                                           form
=============================================================  ==========================================
``save="mask"``                                                opaque: the mask is packed in the same pass
``above="zero"`` of a half type                                opaque: fused code compares before it rounds
traced by ``torch.export``                                     opaque: ``ops.decompositions`` takes it apart
x or cap of a subclass of Tensor (DTensor)                     opaque: rules of a subclass are per operator
``compile_mode("opaque")`` or ``compile_mode("decompose")``     as asked
a backend was chosen by ``use_backend`` or ``DRELUOP_BACKEND`` opaque, on that backend
any other, on every device, of every size and granularity      fused
=============================================================  ==========================================

The first line that fits counts. docs/compile.md says what the last one rests on.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dreluop._internal import torch_private
from dreluop._internal.zeroed import ABOVE
from dreluop.backends import selection

_TENSORS = frozenset({Tensor, nn.Parameter})


def exporting() -> bool:
    """Whether torch.export traces, and not torch.compile."""
    return torch.compiler.is_exporting()


# Dynamo takes `torch.compiler.is_exporting` for true under torch.compile too; so it does not look inside.
torch_private.constant_when_compiled(exporting)


def fuses(x: Tensor, cap: Tensor, mask: bool, zeroed: int) -> bool:
    """Whether a traced call becomes standard operators."""
    # Inductor leaves out the rounding of what it fuses: what reaches its cap by it would be dropped.
    if zeroed & ABOVE and x.element_size() == 2:
        return False
    if mask or exporting() or type(x) not in _TENSORS or type(cap) not in _TENSORS:
        return False
    form = selection.chosen_form()
    return selection.nothing_chosen() if form == "auto" else form == "decompose"
