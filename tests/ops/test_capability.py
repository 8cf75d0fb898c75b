"""Every instruction set that this machine has gives the right bits: each in its own process, as it is chosen once."""

from __future__ import annotations

import os

import pytest
import torch

from dreluop.backends.native import CPU_CAPABILITIES as CAPABILITIES
from dreluop.backends.native import CPU_CAPABILITY_VARIABLE as ENVIRONMENT_VARIABLE
from tests.support import fresh_python, oracle
from tests.support.backends import native_or_skip, operators_of
from tests.support.cases import CASES, DTYPES, all_bit_patterns, special_values

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_capability(capability: str) -> None:
    native_or_skip()
    best = pytest.importorskip("dreluop._C").cpu_capability()
    if ENVIRONMENT_VARIABLE not in os.environ and CAPABILITIES.index(capability) > CAPABILITIES.index(best):
        pytest.skip(f"this machine has no more than {best}")
    environment = {**os.environ, ENVIRONMENT_VARIABLE: capability}
    result = fresh_python.run("from tests.ops import test_capability; test_capability.main()", environment=environment)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [capability]


def test_unknown_capability_is_an_error_at_import() -> None:
    result = fresh_python.run("import dreluop", environment={**os.environ, ENVIRONMENT_VARIABLE: "mmx"})
    assert result.returncode == 1
    assert 'DRELUOP_CPU_CAPABILITY: got "mmx"; expected one of default, avx2, avx512' in result.stderr


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_the_overview_says_when_a_capability_is_not_there(capability: str) -> None:
    native_or_skip()
    pytest.importorskip("dreluop._C")
    code = "from dreluop import __main__ as m; print(*m._build_lines(), sep='\\n')"
    done = fresh_python.run(code, environment={**os.environ, ENVIRONMENT_VARIABLE: capability})
    assert done.returncode == 0, done.stderr
    printed = done.stdout
    served = f"CPU          {capability}, " in printed
    assert served != (f"{ENVIRONMENT_VARIABLE}={capability} asks for what this machine does not have" in printed)


def main() -> None:
    """Compare every operator with the oracle; print the instruction set."""
    from dreluop import _C  # noqa: PLC0415

    torch.set_num_threads(1)
    for dtype in DTYPES:
        values = special_values(dtype)
        pairs = [(case.inputs(dtype), case.dim) for case in CASES[::3] if case.shape]
        pairs.append(((values.repeat(4)[:67].expand(3, values.numel(), 67).contiguous(), values), 1))
        pairs.append(((values[:, None].expand(-1, values.numel()).contiguous(), values), 1))
        if dtype.itemsize == 2:
            pairs.append(((all_bit_patterns(dtype), torch.tensor(0.7)), 0))
        for (x, cap), dim in pairs:
            check(x, cap, dim)
    print(_C.cpu_capability())


def check(x: torch.Tensor, cap: torch.Tensor, dim: int) -> None:
    native = operators_of("native")
    grad, v = torch.randn(x.shape).to(x.dtype), torch.randn(cap.shape).to(cap.dtype)
    y, mask, _ = native.capped_relu_with_aux(x, cap, dim, True, None)
    oracle.assert_same_bits(y, oracle.forward(x, cap, dim))
    order = oracle.mask_order(y, cap)
    oracle.assert_same_bits(mask, oracle.mask(x, cap, dim, order))
    for saved, its_order in ((y, []), (mask, order)):
        dx, dcap, _ = native.capped_relu_backward(grad, saved, cap, dim, its_order, True, True, None, None)
        oracle.assert_same_bits(dx, oracle.grad_x(grad, x, cap, dim))
        oracle.assert_grad_cap(dcap, grad, x, cap, dim)
        tangent = native.capped_relu_jvp(grad, v, saved, cap, dim, its_order)
        oracle.assert_same_bits(tangent, oracle.tangent(grad, v, x, cap, dim))
        through = native.capped_relu_surrogate_backward(grad, saved, cap, dim, its_order, None)
        oracle.assert_same_bits(through, oracle.straight_through(grad, x, cap, dim))
    width = torch.rand(cap.shape) + 0.1
    oracle.assert_soft(native.capped_relu_surrogate_backward(grad, x, cap, dim, [], width), grad, x, cap, width, dim)
    for got, want in zip(native.cap_saturation(x, cap, dim), oracle.saturation(x, cap, dim), strict=True):
        oracle.assert_same_bits(got, want)
