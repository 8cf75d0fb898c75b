"""Checks of an operated model that do not use the counting of dreluop itself."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import dreluop
from dreluop import DReLU
from dreluop.surgery import Report, replace_activations
from tests.surgery.helpers import open_caps

# With the separator, as the paths of other packages begin like torch's.
_TORCH, _DRELUOP = (f"{Path(one.__file__).parent}{os.sep}" for one in (torch, dreluop))


class PlainReLUs(TorchDispatchMode):
    """Notes ``file.py:12`` of every ReLU operator that runs outside of a D-ReLU; ``""`` for one in rewritten code."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__.rstrip("_")
        bounds = [*args[1:3], *(kwargs or {}).values()]
        if name in ("relu", "relu6") or (name in ("hardtanh", "clamp_min", "threshold", "clamp") and bounds[:1] == [0]):
            self._note()
        return func(*args, **(kwargs or {}))

    def _note(self) -> None:
        line, frame = None, sys._getframe(2)
        while frame is not None:
            if isinstance(frame.f_locals.get("self"), DReLU):
                return
            file = frame.f_code.co_filename
            if line is None and not file.startswith(_TORCH):
                line = "" if file.startswith(("<dreluop", _DRELUOP)) else f"{Path(file).name}:{frame.f_lineno}"
            frame = frame.f_back
        self.lines.append(line or "")


def called(model: nn.Module, example: Any) -> Any:
    if isinstance(example, Mapping):
        return model(**example)
    return model(*example) if isinstance(example, tuple) else model(example)


def ran(model: nn.Module, example: Any, training: bool) -> tuple[list[Tensor], list[str]]:
    """The outputs on a copy, and the ReLUs outside of D-ReLUs."""
    torch.manual_seed(1)
    with PlainReLUs() as relus:
        result = called(copy.deepcopy(model).train(training), copy.deepcopy(example))
    return tensors(result), relus.lines


def tensors(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, Mapping):
        return [one for part in result.values() for one in tensors(part)]
    if isinstance(result, tuple | list):
        return [one for part in result for one in tensors(part)]
    return tensors(vars(result)) if hasattr(result, "__dict__") else []


def gradients(model: nn.Module, example: Any) -> dict[str, Tensor]:
    copied = copy.deepcopy(model).train()
    torch.manual_seed(1)
    total = sum((one * one).sum() for one in tensors(called(copied, copy.deepcopy(example))))
    if not isinstance(total, Tensor) or not total.requires_grad:
        return {}
    total.backward()
    return {
        name: one.grad for name, one in copied.named_parameters() if one.grad is not None and ".cap" not in f".{name}"
    }


def check(model: nn.Module, example: Any, *, run: bool, **options: Any) -> Report:
    """Operate on a model; with open caps it computes what it did, and the report names every ReLU that is left."""
    before = {training: ran(model, example, training) for training in (False, True)}
    expected = gradients(model, example)
    report = replace_activations(model, example_input=example if run else None, **options)
    if report.replaced:
        open_caps(model, report)
    if not run:
        assert not report.verified
        verified(report, model, example)
    named = {one.line for one in report.remaining}
    for training, (outputs, _) in before.items():
        now, lines = ran(model, example, training)
        assert len(now) == len(outputs)
        for new, old in zip(now, outputs, strict=True):
            torch.testing.assert_close(new, old, rtol=0, atol=0)
        assert all(line in named if line else report.remaining for line in lines), f"{lines}\n{report}"
        assert len(lines) <= sum(one.calls for one in report.remaining), f"{lines}\n{report}"
    found = gradients(model, example)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient)
    return report


def verified(report: Report, model: nn.Module, example: Any) -> Report:
    if isinstance(example, Mapping):
        return report.verify(model, **example)
    return report.verify(model, *example) if isinstance(example, tuple) else report.verify(model, example)
