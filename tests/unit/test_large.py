"""More than 2^31 elements: in place, in bfloat16 (4.3 GB), every way in which the kernels index."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.support import oracle
from tests.support.backends import native_cuda_or_skip, native_or_skip

pytestmark = pytest.mark.slow

GIGABYTE = 2**30
NEEDED = 10 * GIGABYTE
BLOCK = 4096
BACKGROUND = 2.0


def available_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if not Path("/proc/meminfo").exists():
        return 0
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


@pytest.fixture
def buffer(device: torch.device) -> Tensor:
    if device.type == "cuda":
        native_cuda_or_skip()
    else:
        native_or_skip()
    free = available_memory(device)
    if free < NEEDED:
        pytest.skip(f"needs {NEEDED // GIGABYTE} GB of free memory on {device}, and there are {free / GIGABYTE:.1f}")
    return torch.empty(2**31 + 3 * 67 * 5 * 1000, dtype=torch.bfloat16, device=device)


def starts(numel: int) -> list[int]:
    """Blocks at both ends, in the middle, and over the places where a 31 or 32-bit index or byte count overflows."""
    half = BLOCK // 2
    return [0, 2**29 + 7, 2**30 - half, 2**30 + 12345, 2**31 - half, 2**31 + half, numel - BLOCK]


def caps_of_block(cap: Tensor, start: int, inner: int) -> Tensor:
    return cap.view(-1)[torch.arange(start, start + BLOCK) // inner % cap.numel()]


def shapes(n: int) -> dict[str, tuple[tuple[int, ...], tuple[int, ...], int, int]]:
    """Shape of about n elements, shape of the cap, its dim, and the elements between two caps."""
    return {
        "layer": ((n,), (), 0, 1),
        "inner_1": ((n // 67, 67), (67,), 1, 1),
        "short_runs": ((n // 201, 67, 3), (67,), 1, 3),
        "long_runs": ((3, 5, n // 15), (5,), 1, n // 15),
    }


# The other two only run forward, which indexes their elements as it does those of these.
@pytest.mark.parametrize(
    "names",
    [("inner_1", "long_runs"), pytest.param(("layer", "short_runs"), marks=pytest.mark.full)],
    ids=" and ".join,
)
@pytest.mark.large
def test_more_than_2_to_the_31_elements(buffer: Tensor, threads, names: tuple[str, ...]) -> None:
    threads(2)
    device = buffer.device
    ops = torch.ops.dreluop
    for name in names:
        shape, cap_shape, dim, inner = shapes(buffer.numel())[name]
        flat = buffer[: torch.Size(shape).numel()]
        x = flat.view(shape)
        assert x.numel() > 2**31, name
        cap = torch.linspace(0.5, 1.5, max(1, torch.Size(cap_shape).numel())).view(cap_shape)
        cap_there = cap.to(device)
        flat.fill_(BACKGROUND)
        blocks = {start: torch.randn(BLOCK).bfloat16() for start in starts(x.numel())}
        for start, values in blocks.items():
            flat[start : start + BLOCK] = values
        caps = {start: caps_of_block(cap, start, inner) for start in blocks}

        mask, _ = ops.capped_relu_with_aux_(x, cap_there, dim, True, None)
        assert mask.numel() == -(-x.numel() // 4)
        # All but the blocks is capped.
        expected = torch.zeros(3, cap.numel(), dtype=torch.int64)
        expected[oracle.CAPPED] = x.numel() // cap.numel()
        for start, values in blocks.items():
            oracle.assert_same_bits(flat[start : start + BLOCK].cpu(), oracle.forward(values, caps[start], 0))
            region = oracle.regions(values, caps[start], 0)
            assert torch.equal(unpacked(mask, start), region), (name, start)
            owner = torch.arange(start, start + BLOCK) // inner % cap.numel()
            expected[oracle.CAPPED] -= torch.bincount(owner, minlength=cap.numel())
            for r in (oracle.OFF, oracle.INSIDE, oracle.CAPPED):
                expected[r] += torch.bincount(owner[region == r], minlength=cap.numel())

        # One element, expanded: a gradient without memory of its own.
        grad = torch.full((), 0.5, dtype=torch.bfloat16, device=device).expand(shape)
        total = expected[oracle.CAPPED].double().mul(0.5).view(cap_shape)
        if name == "long_runs":
            order = list(range(x.ndim))
            _, dcap, _ = ops.capped_relu_backward(grad, mask, cap_there, dim, order, False, True, None, None)
            oracle.assert_sum(dcap.cpu(), total, total, torch.float32)
        del mask
        if name == "inner_1":
            assert torch.equal(ops.cap_saturation(x, cap_there, dim)[0].cpu(), expected)
            dx, dcap, _ = ops.capped_relu_backward(grad, x, cap_there, dim, [], True, True, None, None)
            oracle.assert_sum(dcap.cpu(), total, total, torch.float32)
            for start, values in blocks.items():
                want = oracle.grad_x(torch.full((BLOCK,), 0.5, dtype=torch.bfloat16), values, caps[start], 0)
                oracle.assert_same_bits(dx.view(-1)[start : start + BLOCK].cpu(), want)
            nonzero = sum(int(part.count_nonzero()) for part in dx.view(torch.int16).view(-1).split(2**28))
            assert nonzero == expected[oracle.INSIDE].sum()


def unpacked(mask: Tensor, start: int) -> Tensor:
    """The regions of one block."""
    packed = mask[start // 4 : -(-(start + BLOCK) // 4)].cpu()
    return ((packed.unsqueeze(1) >> torch.tensor([0, 2, 4, 6])) & 3).flatten()[start % 4 :][:BLOCK].long()
