"""Fakes refuse what the kernels refuse: a wrong shape ends while tracing, not when the compiled model runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

OPS = torch.ops.dreluop


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


BAD: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "capped_relu": (lambda: OPS.capped_relu(meta(2, 3), meta(4)), ValueError, "cap: got shape"),
    "forward dim": (lambda: OPS.capped_relu(meta(2, 3), meta(3), 2), ValueError, "dim: got 2"),
    "capped_relu_": (lambda: OPS.capped_relu_(meta(2, 3), meta(4)), ValueError, "cap: got shape"),
    "capped_relu_with_aux": (
        lambda: OPS.capped_relu_with_aux(meta(2, 3), meta(4), 1, True, None),
        ValueError,
        "cap: got shape",
    ),
    "capped_relu_with_aux_": (
        lambda: OPS.capped_relu_with_aux_(meta(2, 3), meta(4), 1, True, None),
        ValueError,
        "cap: got shape",
    ),
    "backward cap": (
        lambda: OPS.capped_relu_backward(meta(2, 3), meta(2, 3), meta(4), 1, [], True, True, None, None),
        ValueError,
        "cap: got shape",
    ),
    "backward grad": (
        lambda: OPS.capped_relu_backward(meta(2, 4), meta(2, 3), meta(3), 1, [], True, True, None, None),
        ValueError,
        "grad: got shape",
    ),
    "backward bias": (
        lambda: OPS.capped_relu_backward(meta(2, 3), meta(2, 3), meta(3), 1, [], True, True, None, None, meta(4)),
        ValueError,
        "bias: got shape",
    ),
    "backward grad_penalty": (
        lambda: OPS.capped_relu_backward(meta(2, 3), meta(2, 3), meta(3), 1, [], True, True, 0.5, meta(4)),
        ValueError,
        "grad_penalty: got shape",
    ),
    "capped_relu_jvp": (
        lambda: OPS.capped_relu_jvp(meta(2, 3), None, meta(2, 3), meta(4), 1, []),
        ValueError,
        "cap: got shape",
    ),
    "surrogate grad": (
        lambda: OPS.capped_relu_surrogate_backward(meta(2, 4), meta(2, 3), meta(3), 1, [], None),
        ValueError,
        "grad: got shape",
    ),
    "surrogate width": (
        lambda: OPS.capped_relu_surrogate_backward(meta(2, 3), meta(2, 3), meta(3), 1, [], meta(4)),
        ValueError,
        "width: got shape",
    ),
    "cap_saturation": (lambda: OPS.cap_saturation(meta(2, 3), meta(4)), ValueError, "cap: got shape"),
    "dtype": (lambda: OPS.capped_relu(meta(2, 3, dtype=torch.int32), meta(3)), TypeError, "x: got dtype"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_ends_while_tracing(name: str) -> None:
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()
