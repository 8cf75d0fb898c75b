"""Operate one network and compare it with the original, in a process that gives back its memory and may crash."""

from __future__ import annotations

import math
import multiprocessing
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from benchmarks.surgery.zoo.counting import ReluCounter
from benchmarks.surgery.zoo.networks import Case
from dreluop.surgery import replace_activations, set_caps

# A fused sum adds gradients in another order, so they are equal but for rounding: relative to the largest of the
# parameter, and to the largest of all for those that are zero but for rounding (a bias before a batch norm).
TOLERANCE, TOLERANCE_OF_ALL = 1e-4, 1e-6
SECONDS = 900.0  # of a process


@dataclass
class Row:
    """One network; what an error kept from being found is None.

    Attributes:
        calls: of ReLU in the original, in the mode with more.
        sites, replaced, fused, left, unreached: sites of the report.
        remaining: ReLU calls that the report names as not replaced.
        remaining_independent: ReLU calls in the operated network outside of D-ReLUs, in the mode with more.
        remaining_at: where these are, with their number; reasons: why, as the report says.
        equal: whether the outputs in eval mode are the original's bit for bit, with caps at infinity, 6 and the like.
        gradients: whether those of all parameters of the original are equal in train mode, but for rounding.
        seconds: that the surgery took, with its own run on an example.
        error: of the surgery or the runs after it.
    """

    name: str
    parameters: int | None = None
    calls: int | None = None
    sites: int | None = None
    replaced: int | None = None
    fused: int | None = None
    left: int | None = None
    unreached: int | None = None
    remaining: int | None = None
    remaining_independent: int | None = None
    remaining_at: Mapping[str, int] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()
    equal: bool | None = None
    gradients: bool | None = None
    seconds: float | None = None
    error: str = ""

    @property
    def failure(self) -> str:
        """What is wrong; empty if nothing is. A ReLU that the report names as left is not wrong."""
        checks = {
            self.error: bool(self.error),
            "ReLUs are missed in silence": (self.remaining_independent or 0) > (self.remaining or 0),
            "outputs differ": self.equal is False,
            "gradients differ": self.gradients is False,
        }
        return ", ".join(name for name, wrong in checks.items() if wrong)


@dataclass(frozen=True)
class _Run:
    """What a network did on the same weights, inputs and random numbers in both modes."""

    outputs: list[Any]
    gradients: dict[str, Tensor | None]
    calls: Counter[str]


def check(case: Case) -> Row:
    """Operate a network of the zoo; an exception is a row with its text."""
    row = Row(case.name)
    try:
        _fill(row, case)
    except Exception as error:
        row.error = f"{type(error).__name__}: {error}"
    return row


def _fill(row: Row, case: Case) -> None:
    # One network at a time, made twice: some cannot be copied, and two would take twice the memory.
    model = build(case)
    row.parameters = sum(parameter.numel() for parameter in model.parameters())
    original = run(model, case)
    row.calls = original.calls.total()
    model = build(case)
    inputs = _inputs(case)
    started = time.perf_counter()
    report = replace_activations(model, dim=case.dim, example_input=inputs)
    row.seconds = round(time.perf_counter() - started, 3)
    row.sites, row.replaced, row.fused = len(report.sites), len(report.replaced), len(report.fused)
    row.left, row.unreached = len(report.left), len(report.unreached)
    row.remaining = sum(one.calls for one in report.remaining)
    row.reasons = tuple(sorted({one.reason for one in report.remaining}))
    if report.replaced:
        set_caps(model, {site.name: site.bound or math.inf for site in report.replaced})
    operated = run(model, case)
    row.remaining_independent, row.remaining_at = operated.calls.total(), dict(operated.calls)
    row.equal = _all_equal(operated.outputs, original.outputs)
    row.gradients = _all_close(operated.gradients, original.gradients)


def build(case: Case) -> nn.Module:
    """The network of a case, always with the same weights, of which none is zero."""
    torch.manual_seed(0)
    model = case.build()
    with torch.no_grad():
        frozen = (buffer for name, buffer in model.named_buffers() if name.endswith("weight"))
        for weights in (*model.parameters(), *frozen):
            # Blocks that start as the identity and heads that start at zero would hide whatever is inside.
            weights[weights == 0] = 0.1 * torch.randn(int((weights == 0).sum()))
    return model


def run(model: nn.Module, case: Case) -> _Run:
    """Outputs in eval mode, gradients in train mode, and the ReLU calls of the mode with more."""
    inputs = _inputs(case)
    with torch.no_grad(), ReluCounter() as evaluated:
        outputs = tree_leaves(_call(model.eval(), inputs))
    with ReluCounter() as trained:
        results = tree_leaves(_call(model.train(), inputs))
    _loss(results).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return _Run(outputs, gradients, evaluated.calls | trained.calls)


def _inputs(case: Case) -> Any:
    torch.manual_seed(1)
    return case.inputs()


def _call(model: nn.Module, inputs: Any) -> Any:
    torch.manual_seed(2)
    inputs = tree_map(lambda one: one.clone() if isinstance(one, Tensor) else one, inputs)
    return model(**inputs) if isinstance(inputs, dict) else model(*inputs)


def _loss(results: list[Any]) -> Tensor:
    """A sum over all outputs with random weights: what is normalized has no gradient of its mean or its square."""
    torch.manual_seed(3)
    learned = [one for one in results if isinstance(one, Tensor) and one.requires_grad]
    if not learned:
        raise ValueError(f"outputs: got none of {len(results)} with a gradient; expected at least one")
    return torch.stack([(one * torch.randn_like(one)).mean() for one in learned]).sum()


def _all_equal(outputs: list[Any], expected: list[Any]) -> bool:
    return len(outputs) == len(expected) and all(
        torch.equal(one, other) if isinstance(one, Tensor) and isinstance(other, Tensor) else one == other
        for one, other in zip(outputs, expected, strict=True)
    )


def _all_close(gradients: Mapping[str, Tensor | None], expected: Mapping[str, Tensor | None]) -> bool:
    largest = max(float(one.abs().max()) for one in expected.values() if one is not None)
    for name, wanted in expected.items():
        got = gradients.get(name)
        if got is None or wanted is None:
            if got is not wanted:
                return False
            continue
        allowed = TOLERANCE * float(wanted.abs().max()) + TOLERANCE_OF_ALL * largest
        if not float((got - wanted).abs().max()) <= allowed:
            return False
    return True


def check_apart(case: Case) -> Row:
    """``check`` in a fork of this process; if it crashes or takes longer than SECONDS, the row says so."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(theirs, case))
    process.start()
    theirs.close()
    try:
        if ours.poll(SECONDS):
            row: Row = ours.recv()
        else:
            row = Row(case.name, error=f"took longer than {SECONDS:g} s")
    except EOFError:
        process.join()
        row = Row(case.name, error=f"the process ended with exit code {process.exitcode}")
    process.kill()
    process.join()
    return row


def _send(connection: Connection, case: Case) -> None:
    connection.send(check(case))
