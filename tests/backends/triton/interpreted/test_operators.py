"""What the operators' own tests (tests/ops, with this backend) do not reach: how launches are cut as for a GPU, 64-bit
offsets, masks that lie anyhow, many dimensions, many caps, which calls are one launch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dreluop.backends import reference
from dreluop.backends import triton as backend
from dreluop.backends.triton import tuning
from dreluop.backends.triton.call import KernelCall
from dreluop.backends.triton.plan import Tuning
from dreluop.ops import composite
from tests.backends.triton.recorded import record
from tests.support import oracle
from tests.support.cases import SENTINEL, Case

TRITON = backend.functions()

# Tiles as small as a GPU's: whole tiles and a rest, several programs to a sum, partial sums.
SMALL_TILES = Tuning(flat_tile=128, flat_warps=1, row_tile=64, row_warps=1, row_programs=3, column_tile=64,
                     column_warps=1, column_programs=3, waves=1)  # fmt: skip
CASES = (
    Case((1227,), ()),
    Case((3, 3, 9, 13), (3,)),
    Case((2, 3, 331), (3,)),
    Case((70, 17), (17,)),
    Case((70, 16), (16,)),
    Case((71, 5, 3), (5,)),
    Case((70, 4, 3), (4, 3)),
    Case((2, 8, 7, 7), (8,), layout="channels_last"),
    Case((7, 3, 2, 3), (3, 2, 3), layout="channels_last"),
    Case((3, 4, 33), (4,), layout="narrow"),
    Case((19, 30), (30,), layout="expanded_last"),
)
IN_FP64 = (CASES[1], CASES[3], CASES[5])


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tuning._chosen, "cpu", SMALL_TILES)


def compare(got: tuple[Tensor, ...], want: tuple[Tensor, ...], exact: int) -> None:
    """The first `exact` results bit for bit, the others within what two right sums may differ."""
    for place, (one, other) in enumerate(zip(got, want, strict=True)):
        assert (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())
        if place < exact:
            oracle.assert_same_bits(one, other)
        else:
            torch.testing.assert_close(one, other, rtol=2**-7 if one.element_size() == 2 else 1e-5, atol=2e-4)


def gradients(
    operators: Any, grad: Tensor, saved: Tensor, cap: Tensor, dim: int, order: Any, bias: Tensor | None = None
) -> tuple[Tensor, ...]:
    weight = torch.tensor(1.5, dtype=oracle.accumulator(cap))
    result: tuple[Tensor, ...] = operators(grad, saved, cap, dim, order, True, True, 0.37, weight, bias)
    return result


@pytest.mark.parametrize(
    ("case", "dtype"),
    [*((case, dtype) for case in CASES for dtype in (torch.float32, torch.bfloat16)),
     *((case, torch.float64) for case in IN_FP64)],
    ids=str,
)  # fmt: skip
def test_tiles_of_a_gpu(small_tiles: None, case: Case, dtype: torch.dtype) -> None:
    x, cap = case.inputs(dtype)
    grad = case.grad(dtype)
    with_bias = len(case.shape) > 1 and dtype == torch.float32
    bias_shape = case.cap_shape if len(case.cap_shape) > 1 else (case.shape[case.dim],) if with_bias else ()
    bias = torch.randn(bias_shape) if with_bias else None
    residual = case.grad(dtype, seed=5) if with_bias else None
    y, mask, penalty = TRITON["capped_relu_with_aux"](x, cap, case.dim, True, 0.37, bias, residual)
    want = reference.capped_relu_with_aux(x, cap, case.dim, True, 0.37, bias, residual)
    compare((y, mask, penalty), want, 2)
    order = composite.mask_order(y, cap)
    for saved in (y, mask):
        compare(
            gradients(TRITON["capped_relu_backward"], grad, saved, cap, case.dim, order, bias),
            gradients(reference.capped_relu_backward, grad, saved, cap, case.dim, order, bias), 1,
        )  # fmt: skip
        v = torch.randn(cap.shape).to(dtype)
        arguments = (grad, v, saved, cap, case.dim, order)
        compare((TRITON["capped_relu_jvp"](*arguments),), (reference.capped_relu_jvp(*arguments),), 1)
    compare(TRITON["cap_saturation"](x, cap, case.dim), reference.cap_saturation(x, cap, case.dim), 2)


@pytest.mark.parametrize("case", CASES[3:6], ids=str)
def test_offsets_of_64_bits(monkeypatch: pytest.MonkeyPatch, small_tiles: None, case: Case) -> None:
    made = KernelCall.__init__

    def wide(self: KernelCall, *arguments: Any, **named: Any) -> None:
        made(self, *arguments, **named)
        self.wide = True

    monkeypatch.setattr(KernelCall, "__init__", wide)
    test_tiles_of_a_gpu(None, case, torch.float32)


def test_when_offsets_need_64_bits() -> None:
    x = torch.empty(2, 3, device="meta")
    for t, wide in ((x, False), (x.as_strided((2, 3), (2**31, 1)), True), (x.as_strided((2, 3), (0, 2**30)), True)):
        monkey = KernelCall.__new__(KernelCall)
        # The device only decides about launch parameters.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tuning, "for_device", lambda device: SMALL_TILES)
            monkey.__init__(t, torch.empty(3, device="meta"), 1, (0, 1), x=t)  # type: ignore[misc]
        assert monkey.wide == wide


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0)], ids=str)
@pytest.mark.parametrize("cap_shape", [(), (5,), (5, 6)], ids=str)
@pytest.mark.parametrize("laid_out", ["as it is", "misaligned", "every second byte"])
def test_mask_in_any_order_and_place(cap_shape: tuple[int, ...], order: tuple[int, ...], laid_out: str) -> None:
    grad, cap = torch.randn(7, 5, 6).to(torch.bfloat16), torch.rand(cap_shape)
    regions = torch.randint(0, 3, grad.shape)
    mask = composite.pack(regions == 1, regions == 2, order)
    if laid_out == "misaligned":
        mask = torch.cat([mask[:1], mask])[1:]
    elif laid_out == "every second byte":
        mask = mask.repeat_interleave(2)[::2]
    compare(
        gradients(TRITON["capped_relu_backward"], grad, mask, cap, 1, order),
        gradients(reference.capped_relu_backward, grad, mask, cap, 1, order), 1,
    )  # fmt: skip
    arguments = (grad, torch.randn(cap_shape), mask, cap, 1, order)
    compare((TRITON["capped_relu_jvp"](*arguments),), (reference.capped_relu_jvp(*arguments),), 1)


def test_many_dimensions_that_do_not_merge() -> None:
    x = torch.randn(3, 5, 3, 5, 3, 5, 3, 5)[..., ::2, ::2][:, ::2, ::2, ::2, ::2, ::2]
    cap = torch.rand(x.shape[1]) + 0.3
    y = TRITON["capped_relu"](x, cap, 1)
    compare((y,), (reference.capped_relu(x, cap, 1),), 1)
    arguments = (x, y, cap, 1, ())
    compare(
        gradients(TRITON["capped_relu_backward"], *arguments), gradients(reference.capped_relu_backward, *arguments), 1
    )
    TRITON["capped_relu_"](x, cap, 1)
    oracle.assert_same_bits(x, y)


@pytest.mark.parametrize("count", [1, 3, 16, 17, 40])
def test_lists_of_caps(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    caps = [torch.randn(17 * (k + 1) % 71 * 10 + k) for k in range(count)]
    results = []
    launches = record(monkeypatch, lambda operators: results.append(operators["cap_penalty"](caps, 0.5)), run=True)
    assert len(launches) == -(-count // 16)
    expected = torch.tensor(oracle.penalty(caps, 0.5), dtype=torch.float64)
    oracle.assert_sum(results[0], expected, expected, torch.float32)
    for got, want in zip(
        TRITON["cap_penalty_backward"](torch.tensor(1.3), caps, 0.5),
        reference.cap_penalty_backward(torch.tensor(1.3), caps, 0.5),
        strict=True,
    ):
        torch.testing.assert_close(got, want)


def backward_of(
    shape: tuple[int, ...], cap_shape: tuple[int, ...], *, bias: bool = False, need_cap: bool = True
) -> Any:
    def call(operators: dict[str, Callable[..., Any]]) -> None:
        grad = torch.randn(shape)
        some = torch.randn(shape[1]) if bias else None
        operators["capped_relu_backward"](
            grad, grad, torch.ones(cap_shape), 1, (), True, need_cap, 0.5, torch.ones(()), some
        )

    return call


ONE_LAUNCH = {
    "images": backward_of((8, 16, 12, 12), (16,)),
    "images of odd size": backward_of((8, 16, 7, 7), (16,)),
    "rows": backward_of((500, 64), (64,)),
    "rows with bias": backward_of((500, 64), (64,), bias=True),
    "neurons": backward_of((130, 8, 8), (8, 8)),
    "one cap": backward_of((100, 65), ()),
    "bias alone under one cap": backward_of((100, 64), (), bias=True, need_cap=False),
}
TWO_LAUNCHES = {
    "rows of odd length": backward_of((500, 65), (65,)),
    "short runs": backward_of((500, 5, 3), (5,)),
}
THREE_LAUNCHES = {"one cap with a bias per channel": backward_of((100, 64), (), bias=True)}


@pytest.mark.parametrize(
    ("name", "launches"),
    [(name, count) for count, calls in enumerate((ONE_LAUNCH, TWO_LAUNCHES, THREE_LAUNCHES), 1) for name in calls],
)
def test_launches_of_backward(monkeypatch: pytest.MonkeyPatch, name: str, launches: int) -> None:
    call = (ONE_LAUNCH | TWO_LAUNCHES | THREE_LAUNCHES)[name]
    assert len(record(monkeypatch, call)) == launches


def test_forward_is_one_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    x, cap = torch.randn(9, 7, 11), torch.rand(7)
    for arguments in ((False, None), (True, 0.5)):
        assert len(record(monkeypatch, lambda o: o["capped_relu_with_aux"](x, cap, 1, *arguments, cap, x))) == 1  # noqa: B023


def test_nothing_is_launched_for_bad_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    x, cap = torch.ones(2, 3), torch.ones(3)

    def bad(operators: dict[str, Callable[..., Any]]) -> None:
        for name, arguments, message in (
            ("capped_relu", (x, torch.ones(4), 1), "cap: got shape"),
            ("capped_relu_", (x[:1].expand(2, 3), cap, 1), "inplace: x of shape"),
            ("capped_relu_with_aux_", (x, cap, 1, True, 0.5, torch.ones(2)), "bias: got shape"),
            ("capped_relu_backward", (x, x.double(), cap, 1, (), True, True, None, None), "grad: got dtype"),
            (
                "capped_relu_backward",
                (x, torch.zeros(9, dtype=torch.uint8), cap, 1, (0, 1), True, True, None, None),
                "saved: got a",
            ),
            ("capped_relu_backward", (x, x, cap, 1, (), True, True, 0.5, torch.ones(2)), "grad_penalty: got shape"),
            ("capped_relu_jvp", (x, torch.ones(2), x, cap, 1, ()), "v: got shape"),
            ("cap_saturation", (torch.ones(()), torch.ones(())), "x: got 0 dimensions"),
            ("cap_penalty", ([], 0.5), "caps: got no tensor"),
            ("cap_penalty_backward", (torch.ones(2), [cap], 0.5), "grad: got shape"),
            ("capped_relu", (x, cap.to("meta"), 1), "cap: got a tensor on meta; expected x's device, cpu"),
        ):
            with pytest.raises((ValueError, TypeError), match=message):
                operators[name](*arguments)

    assert record(monkeypatch, bad) == []


def test_in_place_writes_nothing_outside(small_tiles: None) -> None:
    for dtype in (torch.float32, torch.float16):
        buffer = torch.full((1031,), SENTINEL, dtype=dtype)
        for first, last in ((0, 1031), (1, 1030), (3, 500), (8, 9), (5, 5)):
            buffer.fill_(SENTINEL)
            buffer[first:last] = torch.randn(last - first)
            expected = buffer.clone()
            expected[first:last] = reference.capped_relu(buffer[first:last], torch.ones(()), 0)
            TRITON["capped_relu_with_aux_"](buffer[first:last], torch.ones(()), 0, True, None)
            oracle.assert_same_bits(buffer, expected)
