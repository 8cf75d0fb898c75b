"""Memory that is not there: a result that cannot be allocated is said as torch says it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import dreluop
from dreluop.backends.selection import operators
from tests.support.backends import native_or_skip

pytestmark = pytest.mark.usefixtures("python_node")

TOO_MANY = 1 << 45  # 128 TiB of float32, of which only one element exists
ON_CUDA = "CUDA out of memory. Tried to allocate 128 TiB"


@pytest.fixture
def without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operators as on a GPU that is full."""

    def fails(*_: Any) -> Any:
        raise RuntimeError(ON_CUDA)

    for name in ("capped_relu", "capped_relu_", "capped_relu_with_aux", "capped_relu_with_aux_"):
        monkeypatch.setattr(operators(), name, fails)


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize(
    "more", [{}, {"inplace": True}, {"save": "mask"}, {"balancer": 0.1}, {"bias": torch.ones(4)}], ids=str
)
@pytest.mark.usefixtures("without_memory")
def test_forward_raises_the_exception_that_torch_has_for_it(requires_grad: bool, more: dict[str, Any]) -> None:
    x = torch.randn(2, 4, requires_grad=requires_grad) * 1
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate 128 TiB"):
        dreluop.capped_relu(x, torch.ones(4), **more)


def test_a_device_that_failed_before_is_not_called_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before 2.13 torch does not say why it could not allocate."""

    def fails(*_: Any) -> Any:
        raise RuntimeError("CUDA out of memory. dreluop could not allocate a result of shape (2, 4), Float")

    def broken() -> Any:
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(operators(), "capped_relu", fails)
    monkeypatch.setattr(torch.cuda, "mem_get_info", broken)
    with pytest.raises(torch.AcceleratorError, match="device-side assert"):
        dreluop.capped_relu(torch.randn(2, 4), torch.ones(4))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, 1))
    with pytest.raises(torch.OutOfMemoryError):
        dreluop.capped_relu(torch.randn(2, 4), torch.ones(4))


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("save", ["output", "mask"])
def test_so_does_backward(monkeypatch: pytest.MonkeyPatch, save: str, create_graph: bool) -> None:
    x = torch.randn(2, 4, requires_grad=True)
    y = dreluop.capped_relu(x, torch.ones(4), save=save)

    def fails(*_: Any) -> Any:
        raise RuntimeError(ON_CUDA)

    monkeypatch.setattr(operators(), "capped_relu_backward", fails)
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate 128 TiB"):
        torch.autograd.grad(y.sum(), x, create_graph=create_graph)


def test_the_words_of_cuda_malloc_async(monkeypatch: pytest.MonkeyPatch) -> None:
    words = "Allocation on device 0 would exceed allowed memory. (out of memory)\nCurrently allocated     : 1.00 GiB"

    def fails(*_: Any) -> Any:
        raise RuntimeError(words)

    monkeypatch.setattr(operators(), "capped_relu", fails)
    with pytest.raises(torch.OutOfMemoryError, match="would exceed allowed memory"):
        dreluop.capped_relu(torch.randn(2, 4), torch.ones(4))


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: an illegal memory access"), ValueError(ON_CUDA)], ids=str)
def test_other_errors_stay_as_they_are(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fails(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(operators(), "capped_relu", fails)
    with pytest.raises(type(error)) as raised:
        dreluop.capped_relu(torch.randn(2, 4), torch.ones(4))
    assert raised.value is error


def test_the_compiled_operators_name_the_result() -> None:
    native_or_skip()
    x: Tensor = torch.ones(1).expand(TOO_MANY)
    # Since torch 2.13 these are torch's own words, before they are ours.
    by_torch = torch.__version__ >= (2, 13)
    said = f"tried to allocate {4 * TOO_MANY} bytes" if by_torch else rf"allocate a result of shape \({TOO_MANY}\)"
    with pytest.raises(RuntimeError, match=said):
        operators().capped_relu(x, torch.ones(1), 0)


def test_what_no_memory_could_hold_is_not_called_a_lack_of_it() -> None:
    native_or_skip()
    x = torch.ones(1).expand(1 << 62)
    with pytest.raises(RuntimeError, match=r"can be addressed|calculation overflowed"):
        operators().capped_relu(x, torch.ones(1), 0)
