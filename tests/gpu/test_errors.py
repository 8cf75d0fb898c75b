"""Bad input is named before any launch, changes nothing, and leaves the device usable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import dreluop

ops = torch.ops.dreluop
HERE = "cpu"


def tensor(*shape: int, device: str = "cuda", dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full(shape, 5, device=device, dtype=dtype)


RAW: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "cap": (lambda x: ops.capped_relu(x, tensor(3, device=HERE)), "cap"),
    "cap in place": (lambda x: ops.capped_relu_(x, tensor(3, device=HERE)), "cap"),
    "cap of an extra": (lambda x: ops.capped_relu_with_aux(x, tensor(3, device=HERE), 1, True, 0.5), "cap"),
    "bias": (lambda x: ops.capped_relu(x, tensor(3), 1, tensor(3, device=HERE)), "bias"),
    "residual": (lambda x: ops.capped_relu(x, tensor(3), 1, None, tensor(2, 3, device=HERE)), "residual"),
    "saved": (
        lambda x: ops.capped_relu_backward(x, tensor(2, 3, device=HERE), tensor(3), 1, [], True, True, None, None),
        "saved",
    ),
    "mask": (
        lambda x: ops.capped_relu_backward(
            x, tensor(2, device=HERE, dtype=torch.uint8), tensor(3), 1, [0, 1], True, True, None, None
        ),
        "saved",
    ),
    "v": (lambda x: ops.capped_relu_jvp(x, tensor(3, device=HERE), x, tensor(3), 1, []), "v: "),
    "width": (
        lambda x: ops.capped_relu_surrogate_backward(x, x, tensor(3), 1, [], tensor(3, device=HERE)),
        "width: got a tensor on",
    ),
    "cap of saturation": (lambda x: ops.cap_saturation(x, tensor(3, device=HERE)), "cap"),
    "caps": (lambda x: ops.cap_penalty([tensor(3), tensor(3, device=HERE)], 0.5), "cap"),
    "shape": (lambda x: ops.capped_relu_(x, tensor(4)), "cap: got shape"),
    "dtype": (lambda x: ops.capped_relu(x, tensor(3, dtype=torch.int32)), "cap: got dtype"),
    "overlap": (lambda x: ops.capped_relu_(x[:1].expand(2, 3), tensor(3)), "several elements at one address"),
    "mask size": (
        lambda x: ops.capped_relu_backward(
            x, tensor(9, dtype=torch.uint8), tensor(3), 1, [0, 1], True, True, None, None
        ),
        "saved: got a mask of shape",
    ),
}


@pytest.mark.parametrize("name", RAW)
def test_raw_operators(name: str) -> None:
    call, message = RAW[name]
    x = tensor(2, 3)
    with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
        call(x)
    assert x.tolist() == [[5] * 3] * 2
    assert ops.capped_relu(x, tensor(3) - 4).tolist() == [[1] * 3] * 2


PUBLIC: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "cap": (lambda x: dreluop.capped_relu(x, torch.ones(3)), "cap: got a tensor on cpu; expected x's device, cuda:0"),
    "x": (lambda x: dreluop.capped_relu(x.cpu(), tensor(3)), "cap: got a tensor on cuda:0; expected x's device, cpu"),
    "bias": (lambda x: dreluop.capped_relu(x, 1.0, bias=torch.ones(3)), "bias: got a tensor on cpu"),
    "residual": (lambda x: dreluop.capped_relu(x, 1.0, residual=torch.ones(2, 3)), "residual: got a tensor on cpu"),
    "caps": (lambda x: dreluop.cap_penalty([x, torch.ones(3)], 0.5), r"caps\[1\]: got a tensor on cpu"),
    "module": (dreluop.DReLU(3), "cap: got a tensor on cpu"),
}


@pytest.mark.parametrize("name", PUBLIC)
def test_public_functions(name: str) -> None:
    call, message = PUBLIC[name]
    with pytest.raises(ValueError, match=message):
        call(tensor(2, 3))


def test_no_memory_for_the_result_is_an_error_of_torch() -> None:
    # 16 TB, of which only one element exists.
    x = tensor(1).expand(1 << 42)
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        dreluop.capped_relu(x, tensor(1), dim=0)
    # Through the stable ABI, torch's own exception arrives as its base class.
    with pytest.raises(RuntimeError, match="CUDA out of memory"):
        ops.capped_relu_with_aux(x, tensor(1), 0, False, None)
    assert ops.capped_relu(tensor(2, 3), tensor(3)).tolist() == [[5] * 3] * 2
