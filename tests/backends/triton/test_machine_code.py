"""The Triton kernels compiled for GPUs that are not there: wide accesses, nothing spilled, few enough registers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from dreluop.backends.triton import unavailable_reason
from dreluop.backends.triton.plan import Tuning
from tests.backends.triton.recorded import Launch, record
from tests.build.machine_code import (
    ARCHITECTURES,
    MISSING_TOOLS,
    check_fences_around_counts,
    has_tools,
    local_accesses,
    most_before_a_store,
    register_ceiling,
    wide_accesses,
)

pytestmark = pytest.mark.slow

if unavailable_reason("cpu") is None:
    pytest.skip("in the interpreter, nothing is compiled: run without TRITON_INTERPRET", allow_module_level=True)
if not has_tools():
    pytest.skip(MISSING_TOOLS, allow_module_level=True)
pytest.importorskip("triton", reason="needs triton, not installed", exc_type=ImportError)

IMAGES, ODD_IMAGES, ROWS, ODD_ROWS = (32, 64, 28, 28), (31, 64, 7, 7), (4096, 1024), (4095, 1001)


def _forward(shape: tuple[int, ...], caps: int, *, fused: bool = False) -> Callable[..., object]:
    def call(operators: dict[str, Any], dtype: torch.dtype) -> None:
        x, cap = torch.zeros(shape, dtype=dtype), torch.ones(caps)
        if fused:
            operators["capped_relu_with_aux"](x, cap, 1, True, 0.5, torch.zeros(shape[1]), torch.zeros_like(x))
        else:
            operators["capped_relu"](x, cap, 1)

    return call


def _backward(shape: tuple[int, ...], *, code: bool = False, bias: bool = False) -> Callable[..., object]:
    def call(operators: dict[str, Any], dtype: torch.dtype) -> None:
        grad, cap = torch.zeros(shape, dtype=dtype), torch.ones(shape[1])
        size = -(-grad.numel() // 4)
        saved, order = (torch.zeros(size, dtype=torch.uint8), range(len(shape))) if code else (grad.clone(), ())
        weight = torch.ones(()) if bias else None
        operators["capped_relu_backward"](grad, saved, cap, 1, order, True, True, 0.5, weight, cap if bias else None)

    return call


def _jvp(operators: dict[str, Any], dtype: torch.dtype) -> None:
    u, cap = torch.zeros(IMAGES, dtype=dtype), torch.ones(IMAGES[1])
    operators["capped_relu_jvp"](u, cap, u.clone(), cap, 1, ())


def _surrogate(width: bool) -> Callable[..., object]:
    def call(operators: dict[str, Any], dtype: torch.dtype) -> None:
        grad, cap = torch.zeros(IMAGES, dtype=dtype), torch.ones(IMAGES[1])
        operators["capped_relu_surrogate_backward"](grad, grad.clone(), cap, 1, (), cap if width else None)

    return call


DEFAULT = Tuning()
# The hot launches: what is called, and the programs that a multiprocessor must hold at once.
HOT: dict[str, tuple[Callable[..., object], int]] = {
    "forward of images": (_forward(IMAGES, 64), 8),
    "forward of odd images": (_forward(ODD_IMAGES, 64), 8),
    "forward of rows": (_forward(ROWS, 1024), 8),
    "forward of odd rows": (_forward(ODD_ROWS, 1001), 8),
    "forward with one cap": (_forward(ROWS, 1), 8),
    "forward with everything": (_forward(ODD_IMAGES, 64, fused=True), 4),
    "backward of images": (_backward(IMAGES), DEFAULT.row_programs),
    "backward of images from the code": (_backward(IMAGES, code=True), DEFAULT.row_programs),
    "backward of odd images with everything": (_backward(ODD_IMAGES, bias=True), 4),
    "backward of rows": (_backward(ROWS), 4),
    "backward of rows from the code, with everything": (_backward(ROWS, code=True, bias=True), 4),
    "backward of odd rows": (_backward(ODD_ROWS), 4),
    "capped_relu_jvp": (_jvp, 6),
    "surrogate straight through": (_surrogate(False), 6),
    "surrogate soft": (_surrogate(True), 4),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# fp16 differs from bf16 in how it is upcast.
CASES = [(name, dtype) for name in HOT for dtype in DTYPES.values()]
CASES += [(name, torch.float16) for name in ("forward of images", "backward of images", "backward of rows")]
# One architecture for each, and every one for some of each dtype: a compilation takes a second.
COMPILED = [
    pytest.param(name, dtype, arch, marks=[] if (number + turn) % len(ARCHITECTURES) == 0 else pytest.mark.full)
    for number, (name, dtype) in enumerate(CASES)
    for turn, arch in enumerate(ARCHITECTURES)
]


@pytest.mark.parametrize(("name", "dtype", "arch"), COMPILED, ids=lambda value: str(value).removeprefix("torch."))
def test_hot_launch(monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype, arch: str) -> None:
    call, programs = HOT[name]
    launches = record(monkeypatch, lambda operators: call(operators, dtype))
    launch = launches[0]
    function = launch.machine_code(arch)
    operands = 2 if "capped_relu_backward" in name or "everything" in name or name == "capped_relu_jvp" else 1
    assert most_before_a_store(function.code) >= 2 * (1 if "code" in name else operands), function.code
    assert wide_accesses(function.code, "STG")
    assert not local_accesses(function.code)
    assert function.stack == 0
    ceiling = register_ceiling(32 * launch.options["num_warps"], programs)
    assert function.registers <= ceiling, f"{function.registers} registers; {programs} programs need <= {ceiling}"
    if len(launches) == 1 and "capped_relu_backward" in name and not launch.options["ALONE"]:
        check_fences_around_counts(function.code, after="CCTL.IVALL")


def test_the_checks_see_a_narrow_access(monkeypatch: pytest.MonkeyPatch) -> None:
    # A misaligned slice: Triton may not assume 16 bytes.
    def call(operators: dict[str, Any]) -> None:
        operators["capped_relu"](torch.zeros(4097)[1:], torch.ones(()), 0)

    (launch,) = record(monkeypatch, call)
    function = launch.machine_code("sm_90")
    assert not wide_accesses(function.code, "LDG")


def _every_operator(operators: dict[str, Any]) -> None:
    """Every kernel on operands that no fast path takes: strides, fp64, other dtypes, many caps."""
    x, cap = torch.zeros(6, 7, 10, dtype=torch.float64)[..., ::2], torch.ones(7, dtype=torch.float16)
    bias, one = torch.zeros(7, dtype=torch.bfloat16), torch.ones((), dtype=torch.float64)
    y, code, _ = operators["capped_relu_with_aux"](x, cap, 1, True, 0.5, bias, x)
    operators["capped_relu_with_aux_"](x, torch.ones(7, 5).t().contiguous().t(), 1, True, 0.5, None, None)
    order = (0, 1, 2)
    for saved in (y, code, x):
        operators["capped_relu_backward"](x, saved, cap, 1, order, True, True, 0.5, one, bias)
        operators["capped_relu_jvp"](x, cap, saved, cap, 1, order)
        operators["capped_relu_surrogate_backward"](x, saved, cap, 1, order, None)
    operators["capped_relu_surrogate_backward"](x, y, cap, 1, order, torch.ones(7))
    # Neuron caps, short runs, a bias under one cap; codes that lie otherwise than elements are traversed.
    for cap_shape in ((7, 5), ()):
        some = torch.ones(cap_shape)
        bias = torch.zeros(cap_shape or 7)
        operators["capped_relu_backward"](x.float(), x.float(), some, 1, order, True, True, 0.5, one.float(), bias)
        operators["capped_relu_backward"](x.float(), code, some, 1, (1, 0, 2), True, True, 0.5, one.float(), bias)
    operators["capped_relu_backward"](x[:, :, :2].float(), x[:, :, :2].float(), cap, 1, order, True, True, None, None)
    operators["cap_saturation"](x, cap)
    operators["cap_saturation"](x, torch.ones(()))
    many = [torch.ones(5, dtype=dtype) for dtype in (torch.float16, torch.bfloat16, torch.float64)]
    operators["cap_penalty"](many, 0.5)
    operators["cap_penalty_backward"](one, many, 0.5)
    wide = torch.ones(20_000)
    operators["capped_relu_with_aux"](torch.zeros(1, 20_000), wide, 1, False, 0.5)


def test_everything_else_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    launches = record(monkeypatch, _every_operator)
    seen: dict[str, Launch] = {}
    for launch in launches:
        options = {name: value for name, value in launch.options.items() if name not in ("TILE", "num_warps")}
        ranks = [len(argument) for argument in launch.arguments if isinstance(argument, tuple)]
        given = [argument is None for argument in launch.arguments]
        seen.setdefault(f"{launch.name} {options} {ranks} {given}", launch)
    assert {launch.name for launch in seen.values()} == {
        "forward_kernel", "backward_rows_kernel", "backward_columns_kernel", "reduction_kernel", "jvp_kernel",
        "saturation_kernel", "surrogate_kernel", "penalty_kernel", "penalty_backward_kernel",
    }  # fmt: skip
    for launch in seen.values():
        assert launch.compiled(90).asm["cubin"]
