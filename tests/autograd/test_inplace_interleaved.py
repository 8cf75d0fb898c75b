"""In place where strides interleave: every address is looked at, as numbers also where tensors are fake or recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.func import functionalize

import dreluop
from tests.support.devices import new_tensors_on_meta

# Sizes and strides: offsets 0 to 10 but 1 and 9, and offsets of which some come twice.
APART = ((3, 3), (3, 2))
TWICE = ((3, 4), (3, 2))


def before() -> Tensor:
    return torch.arange(13.0) - 3


def write(marked: bool, layout: Any) -> Callable[[Tensor], Tensor]:
    def function(memory: Tensor) -> Tensor:
        x = memory.as_strided(*layout)
        torch.ops.dreluop.capped_relu_(torch._neg_view(x) if marked else x, torch.ones((), device=memory.device))
        return memory

    return function


def compiled(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return torch.compile(function, backend="aot_eager", fullgraph=True)


@pytest.mark.parametrize("marked", [False, True], ids=["", "negated"])
@pytest.mark.parametrize("how", [lambda function: function, functionalize, compiled], ids=["eager", "func", "compiled"])
def test_written_or_refused(how: Callable[..., Any], marked: bool) -> None:
    sign = -1 if marked else 1
    wanted = sign * (sign * before()).clamp(0, 1)
    wanted[[1, 9, 11, 12]] = before()[[1, 9, 11, 12]]
    assert torch.equal(how(write(marked, APART))(before()), wanted)
    memory = before()
    with pytest.raises(Exception, match=r"inplace: x of shape \(3, 4\) and strides \(3, 2\) has several elements"):
        how(write(marked, TWICE))(memory)
    assert torch.equal(memory, before())


@pytest.mark.parametrize("form", ["decompose", "opaque"])
def test_capped_relu_compiled(form: Any) -> None:
    def function(memory: Tensor) -> Tensor:
        dreluop.capped_relu(memory.as_strided(*APART), torch.ones(()), inplace=True)
        return memory

    with dreluop.compile_mode(form):
        assert torch.equal(compiled(function)(before()), function(before()))


@pytest.mark.parametrize("mode", [FakeTensorMode, new_tensors_on_meta], ids=["fake", "default_device"])
@pytest.mark.parametrize("marked", [False, True], ids=["", "negated"])
def test_in_a_mode(mode: Callable[[], Any], marked: bool) -> None:
    with mode():
        memory = torch.empty(13, device="cpu")
        write(marked, APART)(memory)
        with pytest.raises(ValueError, match="inplace: x of shape"):
            write(marked, TWICE)(memory)
