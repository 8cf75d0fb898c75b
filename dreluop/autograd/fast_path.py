"""The usual call in the C++ of torch's autograd: loads `_autograd`, for the one torch that it was built with.

torch's autograd has no stable ABI. With any other torch, or where `_autograd` is not built, ``autograd.
PlainCappedReLUFunction`` serves those calls: the same results, for some more microseconds of Python per call.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from dreluop._internal.errors import raise_as_of_torch
from dreluop._internal.interrupts import left_for_certain
from dreluop.autograd.function import plain_backward
from dreluop.ops.handles import DEFAULT

ENVIRONMENT_VARIABLE = "DRELUOP_AUTOGRAD"
CHOICES = ("auto", "python", "compiled")

# Called with x, cap, dim and inplace: y, or None for what is not the usual call. None where it does not serve.
capped_relu: Callable[[Tensor, Tensor | float, int, bool], Tensor | None] | None = None
backward_in_python = functools.partial(plain_backward, DEFAULT)
# Why it does not serve; None if it does.
reason: str | None


def _load() -> str | None:
    choice = os.environ.get(ENVIRONMENT_VARIABLE, "auto")
    if choice not in CHOICES:
        raise ValueError(f'{ENVIRONMENT_VARIABLE}: got "{choice}"; expected one of {", ".join(CHOICES)}')
    if choice == "python":
        return f"not loaded: {ENVIRONMENT_VARIABLE}=python asks for Python"
    error = _load_module()
    if error is not None and choice == "compiled":
        raise ImportError(f"{ENVIRONMENT_VARIABLE}=compiled, but the compiled autograd node does not serve: {error}")
    return error


def _load_module() -> str | None:
    global capped_relu  # noqa: PLW0603 (what the usual call looks at)
    if importlib.util.find_spec("dreluop._autograd") is None:
        return "dreluop._autograd is not built"
    try:
        # Before it is loaded: another torch may have symbols of the same name and another meaning.
        if of_another_torch():
            return f"built with torch {_built_with()}, and this is torch {torch.__version__}"
        from dreluop import _autograd  # noqa: PLC0415 (not there everywhere)
    except ImportError as error:
        return str(error)
    _autograd.set_python(backward_in_python, raise_as_of_torch)
    capped_relu = _autograd.capped_relu
    return None


def _built_with() -> str:
    from dreluop import _C  # noqa: PLC0415 (not there everywhere)

    return _C.build_info()["torch_headers"]


def of_another_torch() -> bool:
    """Whether the compiled part was built with another torch than this.

    Raises:
        ImportError: there is no compiled part.
    """
    return _built_with() != str(torch.__version__)


def switched_off() -> AbstractContextManager[None]:
    """In the block, Python serves (in all threads)."""
    block = object()
    return left_for_certain(lambda: _switch(_blocks.add, block), lambda: _switch(_blocks.discard, block))


def _switch(change: Callable[[object], None], block: object) -> None:
    global capped_relu  # noqa: PLW0603
    with _lock:
        change(block)
        capped_relu = None if _blocks else _loaded


reason = _load()
_loaded, _lock = capped_relu, threading.Lock()
# The blocks that are open.
_blocks: set[object] = set()
