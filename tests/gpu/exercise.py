"""Few calls that reach every kernel and every branch in it, for compute-sanitizer: `python -m tests.gpu.exercise`.

With `--few` in float32 and bfloat16 alone, for a tool that is slow: float16 and bfloat16 share and order memory alike.

Results are compared with the oracle, so that a tool that changes what is computed is noticed too.
"""

from __future__ import annotations

import argparse
import sys

import torch

from dreluop.backends import native
from tests.gpu.helpers import TRAVERSALS, every_result
from tests.support import oracle
from tests.support.cases import DTYPES, MIXED_DTYPES, Case
from tests.support.devices import moved

CASES = (
    *TRAVERSALS,
    # Head and tail, single elements, nothing at all.
    Case((1025,), (), layout="offset"),
    Case((7,), (1,)),
    Case((), ()),
    Case((0, 4), (4,)),
    Case((4, 0), (0,)),
    # Long runs of whole vectors.
    Case((4, 3, 64, 64), (3,)),
    # Short and long runs, rows that are no whole groups, more columns than a tile holds.
    Case((1025, 5, 3), (5,)),
    Case((3, 13, 9, 29), (13,)),
    Case((2, 8, 16, 16), (8,)),
    Case((3, 4099), (4099,)),
    Case((64, 512), (512,)),
    Case((1, 7, 1009), (7, 1009)),
    # General strides, of x and of caps.
    Case((6, 35, 33), (35,), layout="narrow"),
    Case((9, 6, 65), (6,), layout="transposed"),
    Case((3, 5, 11), (11,), dim=-1, layout="step"),
    Case((7, 3, 5, 6), (3, 5, 6), layout="permuted"),
    Case((7, 3, 5, 6), (3, 5, 6), layout="channels_last"),
)
FEW = (torch.float32, torch.bfloat16)
MANY_CAPS = 400  # more than one launch of penalty takes


def check(case: Case, dtypes: tuple[torch.dtype, torch.dtype], device: torch.device) -> None:
    x, cap = case.inputs(*dtypes)
    grad = case.grad(x.dtype)
    x_there, cap_there, grad_there = (moved(t, device) for t in (x, cap, grad))
    y = every_result(x_there, cap_there, grad_there, case.dim)[0]
    oracle.assert_same_bits(y.cpu(), oracle.forward(x, cap, case.dim))
    with_bias_and_residual(case, x_there, cap_there, grad_there)


def with_bias_and_residual(case: Case, x: torch.Tensor, cap: torch.Tensor, grad: torch.Tensor) -> None:
    if case.dim >= x.ndim:
        return
    shape = cap.shape if cap.ndim > 1 else (x.shape[case.dim],)
    bias = moved(torch.linspace(-1, 1, torch.Size(shape).numel()).view(shape), x.device)
    ops = torch.ops.dreluop
    for residual in (None, grad):
        y, mask, _ = ops.capped_relu_with_aux(x, cap, case.dim, True, 0.5, bias, residual)
        for saved, order in ((y, []), (mask, oracle.mask_order(y, cap))):
            for need in (True, False):
                ops.capped_relu_backward(grad, saved, cap, case.dim, order, need, need, None, None, bias)


def penalties(device: torch.device) -> None:
    caps = [moved(torch.full((i % 7,), 0.5), device) for i in range(MANY_CAPS)] + [moved(torch.ones(20_000), device)]
    total = torch.ops.dreluop.cap_penalty(caps, 0.1)
    expected = 0.1 * (sum(i % 7 for i in range(MANY_CAPS)) * 0.25 + 20_000)
    assert abs(total.item() - expected) < 1e-3 * expected, total
    torch.ops.dreluop.cap_penalty_backward(total, caps, 0.1)


def main(device: torch.device, *, few: bool = False) -> None:
    reason = native.cuda_reason() if device.type == "cuda" else native.load_error
    if reason is not None:
        sys.exit(f"the native kernels do not serve: {reason}")
    print("exercise started", flush=True)
    dtypes = FEW if few else DTYPES
    for number, case in enumerate(CASES, start=1):
        for dtype in dtypes:
            check(case, (dtype, dtype), device)
        # Where a tool runs out of time, its log shows how far it came.
        print(f"{number} of {len(CASES)}: {case}", flush=True)
    for mixed in MIXED_DTYPES:
        check(Case((65, 130), (130,)), mixed, device)
    penalties(device)
    if device.type == "cuda":
        torch.cuda.synchronize()
    print("exercise completed", flush=True)


if __name__ == "__main__":
    asked = argparse.ArgumentParser(prog="python -m tests.gpu.exercise", description=(__doc__ or "").splitlines()[0])
    asked.add_argument("device", nargs="?", default="cuda")
    asked.add_argument("--few", action="store_true", help="in float32 and bfloat16 alone")
    options = asked.parse_args()
    main(torch.device(options.device), few=options.few)
