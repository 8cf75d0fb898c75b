"""The zoo: what a row says of a small network, and what its counter counts."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import dreluop
from benchmarks.surgery.zoo import networks
from benchmarks.surgery.zoo.counting import ReluCounter
from benchmarks.surgery.zoo.networks import Case
from benchmarks.surgery.zoo.row import Row, build, check, check_apart

GOOD = Row("net", 10, 3, 3, 2, 1, 1, 0, 1, 1, equal=True, gradients=True)


class Small(nn.Module):
    """A hard sigmoid, which stays, beside ReLUs of a module, of a function and after a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.act = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.ReLU()
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.act(self.first(x))
        gate = functional.relu6(x + 3) / 6
        return {"features": self.act(self.second(x) + x), "gated": functional.relu(gate - 0.6)}


CASE = Case("torch/small", Small, lambda: (torch.randn(2, 3, 5, 5),))


def test_a_row() -> None:
    row = check(CASE)
    assert row.error == ""
    assert (row.calls, row.replaced, row.fused) == (4, 3, 1)
    assert row.remaining_independent == 1
    (place,) = row.remaining_at
    assert place.startswith("hardtanh in Small, test_zoo.py:")
    assert (row.equal, row.gradients, row.failure) == (True, True, "")


def test_failures_are_named() -> None:
    assert GOOD.failure == ""
    assert replace(GOOD, equal=False).failure == "outputs differ"
    assert replace(GOOD, gradients=False).failure == "gradients differ"
    assert replace(GOOD, remaining=0).failure == "ReLUs are missed in silence"
    assert replace(GOOD, error="TypeError: no").failure == "TypeError: no"


@pytest.mark.parametrize(
    ("function", "counted"),
    [
        (functional.relu, True),
        (functional.relu_, True),
        (functional.relu6, True),
        (lambda x: functional.hardtanh(x, 0, 4), True),
        (functional.hardtanh, False),
        (lambda x: x.clamp(min=0), True),
        (lambda x: x.clamp_min_(0), True),
        (lambda x: x.clamp(0, 1), False),
        (lambda x: x.clamp(min=-1), False),
        (lambda x: functional.threshold(x, 0, 0), True),
        (lambda x: functional.threshold(x, 0.1, 0), False),
        (lambda x: x.int().clamp(min=0), False),
        (functional.hardsigmoid, False),
        (dreluop.DReLU(), False),
        (nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).eval(), True),
        (nn.TransformerEncoderLayer(4, 2, 8, activation="gelu", batch_first=True).eval(), False),
    ],
)
def test_what_is_counted(function: Callable[[Tensor], Any], counted: bool) -> None:
    with torch.no_grad(), ReluCounter() as counter:
        function(torch.randn(1, 3, 4))
    assert counter.calls.total() == counted


def test_a_relu_inside_of_a_d_relu_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dreluop.DReLU, "forward", lambda self, x: x.relu())
    with ReluCounter() as counter:
        dreluop.DReLU()(torch.randn(3))
    assert not counter.calls


def test_no_weight_is_zero() -> None:
    assert all(bool((parameter != 0).all()) for parameter in build(CASE).parameters())


def test_an_error_and_a_crash_are_rows() -> None:
    def fail() -> nn.Module:
        raise ValueError("no weights")

    assert check_apart(replace(CASE, build=fail)).failure == "ValueError: no weights"
    assert check_apart(replace(CASE, build=lambda: os._exit(3))).failure == "the process ended with exit code 3"


def test_the_names_of_the_zoo() -> None:
    names = [case.name for case in networks.cases()]
    assert len(set(names)) == len(names)
    assert {case.library for case in networks.cases()} == {
        "segmentation_models_pytorch", "timm", "torchvision", "transformers"
    }  # fmt: skip
