"""Ctrl-C at any line of a context of ours: nothing stays chosen, switched off, counted or hooked on.

One place is left, which no Python code can guard: before the first line of an ``__exit__`` of a class, or of an
``__enter__`` after a constructor that has chosen already.
"""

from __future__ import annotations

import contextlib
import gc
import linecache
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
import torch
from torch import nn

import dreluop
from dreluop import adaptive, diagnostics
from dreluop._internal import interrupts
from dreluop.autograd import fast_path, surrogate
from dreluop.backends import selection
from dreluop.caps import statistics


class Interrupt:
    """Raises KeyboardInterrupt before the line ``at`` of all that run in these files."""

    def __init__(self, files: set[str], at: int) -> None:
        self.files, self.left = files, at

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in self.files:
            return None
        first = frame.f_code.co_name in ("__enter__", "__exit__")

        def trace(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal first
            if event == "line":
                # A tracer is called between the body of `with lock` and its end, where no signal is.
                locking = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip() == "with _lock:"
                self.left -= not (first or locking)
                first = False
                if self.left == 0:
                    self.left = -1
                    raise KeyboardInterrupt
            return trace

        return trace


def interrupted(block: Callable[[], Any], files: set[str], at: int) -> bool:
    """Whether the interrupt came before the block had ended."""
    before, with_gradients = sys.gettrace(), torch.is_grad_enabled()
    try:
        sys.settrace(Interrupt(files, at))
        block()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
        # A tracer is called between the body of `with torch.no_grad()` and its end too.
        torch.set_grad_enabled(with_gradients)
    return False


def enter(context: Any) -> None:
    with context():
        pass


def nested() -> None:
    with dreluop.use_backend("reference"), dreluop.use_backend(None):
        pass


MODEL = nn.Sequential(nn.Linear(2, 2), dreluop.DReLU(2), dreluop.SReLU(1.0))


def state() -> list[Any]:
    return [
        selection._chosen.name,
        selection._chosen.form,
        surrogate.active,
        getattr(surrogate._of_thread, "surrogate", None),
        fast_path.capped_relu,
        gc.isenabled(),
        sys.getprofile(),
        [type(module) for module in MODEL.modules()],
        [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in MODEL.modules()],
    ]


CONTEXTS: dict[str, tuple[Callable[[], Any], Any]] = {
    "use_backend": (lambda: enter(lambda: dreluop.use_backend("reference")), selection),
    "use_backend, nested": (nested, selection),
    "compile_mode": (lambda: enter(lambda: dreluop.compile_mode("opaque")), selection),
    "using": (lambda: enter(lambda: selection.using(selection.operators_of("reference"))), selection),
    "surrogate_backward": (lambda: enter(adaptive.surrogate_backward), adaptive),
    "measure_std": (lambda: adaptive.measure_std(MODEL, torch.randn(4, 2)), adaptive),
    "switched_off": (lambda: enter(fast_path.switched_off), fast_path),
    "watched": (
        lambda: enter(lambda: statistics.watched(statistics.capped_layers(MODEL), lambda *_: None)),
        statistics,
    ),
    "monitor": (lambda: enter(lambda: diagnostics.SaturationMonitor(MODEL)), diagnostics),
}


@pytest.mark.parametrize("name", CONTEXTS)
def test_an_interrupt_at_every_line(name: str) -> None:
    block, module = CONTEXTS[name]
    files = {m.__file__ for m in (module, interrupts, surrogate, contextlib)}
    before = state()
    at = 1
    while interrupted(block, files, at):
        assert state() == before, at
        at += 1
    assert at > 2
    assert state() == before
