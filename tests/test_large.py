"""More than 2^31 elements: in place, in bfloat16 (4.3 GB), every way in which the kernels index."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests import oracle
from tests.conftest import native_or_skip

GIGABYTE = 2**30
NEEDED = 10 * GIGABYTE
BLOCK = 4096
BACKGROUND = 2.0


def available_memory() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


@pytest.fixture
def buffer() -> Tensor:
    native_or_skip()
    free = available_memory() if Path("/proc/meminfo").exists() else 0
    if free < NEEDED:
        pytest.skip(f"needs {NEEDED // GIGABYTE} GB of free memory, and there are {free / GIGABYTE:.1f}")
    return torch.empty(2**31 + 3 * 67 * 5 * 1000, dtype=torch.bfloat16)


def starts(numel: int) -> list[int]:
    """Blocks at both ends, in the middle, and over the places where a 31 or 32-bit index or byte count overflows."""
    half = BLOCK // 2
    return [0, 2**29 + 7, 2**30 - half, 2**30 + 12345, 2**31 - half, 2**31 + half, numel - BLOCK]


def caps_of_block(cap: Tensor, start: int, inner: int) -> Tensor:
    return cap.view(-1)[torch.arange(start, start + BLOCK) // inner % cap.numel()]


# shape of x for n elements, cap shape, dim, inner
VIEWS = {
    "layer": (lambda n: (n,), (), 0, 1),
    "inner_1": (lambda n: (n // 67, 67), (67,), 1, 1),
    "long_runs": (lambda n: (3, 5, n // 15), (5,), 1, None),
    "short_runs": (lambda n: (n // 201, 67, 3), (67,), 1, 3),
}


@pytest.mark.large
def test_more_than_2_to_the_31_elements(buffer: Tensor, threads) -> None:
    threads(2)
    ops = torch.ops.dreluop
    for name, (shape_of, cap_shape, dim, inner) in VIEWS.items():
        shape = shape_of(buffer.numel())
        flat = buffer[: torch.Size(shape).numel()]
        assert flat.numel() > 2**31, name
        cap = torch.linspace(0.5, 1.5, max(1, torch.Size(cap_shape).numel())).bfloat16().view(cap_shape)
        inner = inner or shape[-1]
        flat.fill_(BACKGROUND)
        blocks = {start: torch.randn(BLOCK).bfloat16() for start in starts(flat.numel())}
        for start, values in blocks.items():
            flat[start : start + BLOCK] = values
        block_caps = {start: caps_of_block(cap, start, inner) for start in blocks}

        code, _ = ops.forward_extra_(flat.view(shape), cap, dim, True, None)
        assert code.numel() == -(-flat.numel() // 4)
        counts, live = ops.saturation(flat.view(shape), cap, dim)
        assert live.any()
        expected = torch.zeros(3, cap.numel(), dtype=torch.int64)
        expected[oracle.CAPPED] = flat.numel() // cap.numel()
        for start, values in blocks.items():
            m, got = block_caps[start], flat[start : start + BLOCK]
            oracle.assert_same_bits(got, oracle.forward(values, m, 0))
            region = oracle.regions(values, m, 0)
            packed = code[start // 4 : -(-(start + BLOCK) // 4)]
            unpacked = (packed.unsqueeze(1) >> torch.tensor([0, 2, 4, 6])).bitwise_and(3).flatten()
            assert torch.equal(unpacked[start % 4 :][:BLOCK].long(), region), (name, start)
            owner = torch.arange(start, start + BLOCK) // inner % cap.numel()
            expected[oracle.CAPPED] -= torch.bincount(owner, minlength=cap.numel())
            for r in (oracle.OFF, oracle.INSIDE, oracle.CAPPED):
                expected[r] += torch.bincount(owner[region == r], minlength=cap.numel())
        assert torch.equal(counts.view(3, -1), expected), name

        # One element, expanded: a gradient without memory of its own.
        grad = torch.full((), 0.5, dtype=torch.bfloat16).expand(shape)
        order = list(range(len(shape)))
        total = expected[oracle.CAPPED].double().mul(0.5).view(cap_shape)
        float_cap = cap.float()
        for saved, its_order in ((flat.view(shape), []), (code, order)):
            _, dcap = ops.backward(grad, saved, float_cap, dim, its_order, False, True, None, None)
            oracle.assert_sum(dcap, total, total, torch.float32)


@pytest.mark.large
def test_gradient_of_more_than_2_to_the_31_elements(buffer: Tensor, threads) -> None:
    threads(2)
    shape, cap = (buffer.numel() // 67, 67), torch.linspace(0.5, 1.5, 67)
    y = buffer[: 67 * shape[0]].fill_(0)
    blocks = {start: torch.randn(BLOCK).bfloat16() for start in starts(y.numel())}
    for start, values in blocks.items():
        y[start : start + BLOCK] = oracle.forward(values, caps_of_block(cap, start, 1), 0)
    grad = torch.full((), 0.5, dtype=torch.bfloat16).expand(shape)
    dx, dcap = torch.ops.dreluop.backward(grad, y.view(shape), cap, 1, [], True, True, None, None)
    total = torch.zeros(67, dtype=torch.float64)
    inside = 0
    for start, values in blocks.items():
        m = caps_of_block(cap, start, 1)
        expected = oracle.grad_x(torch.full((BLOCK,), 0.5).bfloat16(), values, m, 0)
        oracle.assert_same_bits(dx.view(-1)[start : start + BLOCK], expected)
        inside += int((expected != 0).sum())
        capped = oracle.regions(values, m, 0) == oracle.CAPPED
        total += 0.5 * torch.bincount((torch.arange(start, start + BLOCK) % 67)[capped], minlength=67)
    assert sum(int(part.count_nonzero()) for part in dx.view(-1).split(2**28)) == inside
    oracle.assert_sum(dcap, total, total, torch.float32)
