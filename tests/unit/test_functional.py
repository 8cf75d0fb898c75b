"""The public functions: every bad argument with its message, caps as numbers, cap_penalty over things, saturation."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dreluop
from tests.support import oracle
from tests.support.cases import DTYPES, FEW_CASES, MIXED_DTYPES, Case, dtype_id, mixed_id

X = torch.randn(4, 3, 5)
CAP = torch.ones(3)
FLOAT_DTYPES = "expected float32, float64, float16 or bfloat16"

# name: (arguments, keywords, error, message); for capped_relu and, where it has the argument, saturation.
BAD_INPUTS: dict[str, tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = {
    "x_list": (([1.0], CAP), {}, TypeError, "x: got list; expected a torch.Tensor"),
    "x_none": ((None, CAP), {}, TypeError, "x: got NoneType; expected a torch.Tensor"),
    "x_integer": ((X.long(), CAP), {}, TypeError, f"x: got dtype torch.int64; {FLOAT_DTYPES}"),
    "x_bool": ((X > 0, CAP), {}, TypeError, f"x: got dtype torch.bool; {FLOAT_DTYPES}"),
    "x_complex": ((X.to(torch.complex64), CAP), {}, TypeError, f"x: got dtype torch.complex64; {FLOAT_DTYPES}"),
    "x_float8": ((X.to(torch.float8_e4m3fn), CAP), {}, TypeError, f"x: got dtype torch.float8_e4m3fn; {FLOAT_DTYPES}"),
    "x_nested": (
        (torch.nested.nested_tensor([X[0], X[0, :2]]), CAP), {}, TypeError, "x: got a nested tensor; expected one of"
    ),
    "x_jagged": (
        (torch.nested.nested_tensor([X[0], X[0, :2]], layout=torch.jagged), CAP), {}, TypeError, "x: got a nested"
    ),
    "x_mkldnn": ((X.to_mkldnn(), CAP), {}, TypeError, "x: got layout torch._mkldnn; expected torch.strided"),
    "x_quantized": (
        (torch.quantize_per_tensor(X, 0.1, 0, torch.quint8), CAP), {}, TypeError, "x: got dtype torch.quint8; expected"
    ),
    "cap_nested": ((X, torch.nested.nested_tensor([CAP])), {}, TypeError, "cap: got a nested tensor; expected one of"),
    "cap_huge": ((X, 10**5000), {}, ValueError, "cap: got an int of 16610 bits; expected a number in the range of a"),
    "dim_huge": ((X, CAP), {"dim": 10**5000}, ValueError, "dim: got an int of 16610 bits; expected one of 63 bits and"),
    "dim_64_bits": ((X, CAP), {"dim": 2**63}, ValueError, "dim: got an int of 64 bits; expected one of 63 bits and a"),
    "x_sparse": ((X.to_sparse(), CAP), {}, TypeError, "x: got layout torch.sparse_coo; expected torch.strided"),
    "cap_none": ((X, None), {}, TypeError, "cap: got NoneType; expected a torch.Tensor or a number"),
    "cap_string": ((X, "1"), {}, TypeError, "cap: got str; expected a torch.Tensor"),
    "cap_bool": ((X, True), {}, TypeError, "cap: got bool; expected a torch.Tensor"),
    "cap_list": ((X, [1.0]), {}, TypeError, "cap: got list; expected a torch.Tensor"),
    "cap_integer": ((X, CAP.long()), {}, TypeError, f"cap: got dtype torch.int64; {FLOAT_DTYPES}"),
    "cap_sparse": ((X, CAP.to_sparse()), {}, TypeError, "cap: got layout torch.sparse_coo; expected torch.strided"),
    "cap_on_meta": ((X, CAP.to("meta")), {}, ValueError, "cap: got a tensor on meta; expected x's device, cpu"),
    "x_on_meta": ((X.to("meta"), CAP), {}, ValueError, "cap: got a tensor on cpu; expected x's device, meta"),
    "cap_of_wrong_size": (
        (X, torch.ones(4)), {}, ValueError,
        "cap: got shape (4,) for x of shape (4, 3, 5) and dim=1; expected () or (1,) for one cap, (3,) for one per "
        "channel of dim 1, or (3, 5) for one per neuron",
    ),
    "cap_of_another_dim": (
        (X, torch.ones(3)), {"dim": 2}, ValueError, "cap: got shape (3,) for x of shape (4, 3, 5) and dim=2; expected"
    ),
    "cap_empty": ((X, torch.ones(0)), {}, ValueError, "cap: got shape (0,) for x of shape (4, 3, 5)"),
    "cap_broadcastable": (
        (X, torch.ones(1, 3, 1)), {}, ValueError,
        "cap: got shape (1, 3, 1) for x of shape (4, 3, 5); a cap of more than one dimension is a neuron cap and must "
        "have shape x.shape[1:] = (3, 5)",
    ),
    "cap_of_x_shape": ((X, torch.ones(4, 3, 5)), {}, ValueError, "cap: got shape (4, 3, 5) for x of shape (4, 3, 5)"),
    "cap_1_by_1": ((X, torch.ones(1, 1)), {}, ValueError, "cap: got shape (1, 1) for x of shape (4, 3, 5)"),
    "dim_too_large": ((X, CAP), {"dim": 3}, ValueError, "dim: got 3 for x of shape (4, 3, 5); expected -3 <= dim < 3"),
    "dim_too_small": ((X, CAP), {"dim": -4}, ValueError, "dim: got -4 for x of shape (4, 3, 5); expected -3 <= dim"),
    "dim_of_a_vector": ((X[0, 0], torch.ones(5)), {}, ValueError, "dim: got 1 for x of shape (5,); expected -1 <= dim"),
    "dim_float": ((X, CAP), {"dim": 1.0}, TypeError, "dim: got float; expected an int"),
    "dim_bool": ((X, CAP), {"dim": True}, TypeError, "dim: got bool; expected an int"),
    "dim_none": ((X, CAP), {"dim": None}, TypeError, "dim: got NoneType; expected an int"),
}  # fmt: skip
BAD_OPTIONS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "save_unknown": ({"save": "input"}, ValueError, 'save: got \'input\'; expected "output" or "mask"'),
    "save_none": ({"save": None}, ValueError, 'save: got None; expected "output" or "mask"'),
    "save_list": ({"save": ["mask"]}, ValueError, 'save: got [\'mask\']; expected "output" or "mask"'),
    "balancer_negative": ({"balancer": -0.5}, ValueError, "balancer: got -0.5; expected a finite number >= 0"),
    "balancer_nan": ({"balancer": math.nan}, ValueError, "balancer: got nan; expected a finite number >= 0"),
    "balancer_inf": ({"balancer": math.inf}, ValueError, "balancer: got inf; expected a finite number >= 0"),
    "balancer_huge": ({"balancer": 10**400}, ValueError, "balancer: got an int of 1329 bits; expected a number in the"),
    "bias_nested": ({"bias": torch.nested.nested_tensor([CAP])}, TypeError, "bias: got a nested tensor; expected one"),
    "residual_nested": ({"residual": torch.nested.nested_tensor([X])}, TypeError, "residual: got a nested tensor;"),
    "balancer_string": ({"balancer": "1"}, TypeError, "balancer: got str; expected a number"),
    "balancer_bool": ({"balancer": True}, TypeError, "balancer: got bool; expected a number"),
    "balancer_tensor": (
        {"balancer": torch.ones(1)}, TypeError,
        "balancer: got Tensor of shape (1,) and torch.float32 on cpu; expected a number",
    ),
    "balancer_learned": (
        {"balancer": torch.ones((), requires_grad=True)}, TypeError,
        "balancer: got Tensor that requires grad; expected a number",
    ),
    "balancer_complex": ({"balancer": 1j}, TypeError, "balancer: got complex; expected a number"),
}  # fmt: skip


@pytest.mark.parametrize("function", [dreluop.capped_relu, dreluop.saturation], ids=["capped_relu", "cap_saturation"])
@pytest.mark.parametrize("name", BAD_INPUTS)
@pytest.mark.usefixtures("both_nodes")
def test_bad_input(function: Callable[..., Any], name: str) -> None:
    arguments, keywords, error, message = BAD_INPUTS[name]
    with pytest.raises(error, match=re.escape(message)):
        function(*arguments, **keywords)


@pytest.mark.parametrize("inplace", [False, True], ids=["", "inplace"])
@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_bad_option(name: str, inplace: bool) -> None:
    keywords, error, message = BAD_OPTIONS[name]
    x = X.clone()
    with pytest.raises(error, match=re.escape(message)):
        dreluop.capped_relu(x, CAP, inplace=inplace, **keywords)
    assert torch.equal(x, X)


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_input_in_place_changes_nothing(name: str) -> None:
    arguments, keywords, error, message = BAD_INPUTS[name]
    before = X.clone()
    with pytest.raises(error, match=re.escape(message)):
        dreluop.capped_relu(*arguments, inplace=True, **keywords)
    assert torch.equal(X, before)


def test_saturation_of_a_scalar() -> None:
    with pytest.raises(ValueError, match="x: got 0 dimensions; expected at least one, the sample"):
        dreluop.saturation(torch.ones(()), 1.0)


def test_options_are_by_keyword_only() -> None:
    with pytest.raises(TypeError, match="positional argument"):
        dreluop.capped_relu(X, CAP, 1)  # type: ignore[misc]


BAD_CAPS: dict[str, tuple[Any, type[Exception], str]] = {
    "number": (1.0, TypeError, "caps: got float; expected a tensor, tensors or a module"),
    "none": (None, TypeError, "caps: got NoneType; expected a tensor, tensors or a module"),
    "empty_list": ([], ValueError, "caps: got no tensor; expected at least one"),
    "numbers": ([CAP, 1.0], TypeError, "caps[1]: got float; expected a torch.Tensor"),
    "string": ("caps", TypeError, "caps[0]: got str; expected a torch.Tensor"),
    "integer": ([CAP, CAP, CAP.long()], TypeError, f"caps[2]: got dtype torch.int64; {FLOAT_DTYPES}"),
    "sparse": (CAP.to_sparse(), TypeError, "caps[0]: got layout torch.sparse_coo; expected torch.strided"),
    "two_devices": (
        [CAP, CAP.to("meta")], ValueError,
        "caps[1]: got a tensor on meta; expected the device of caps[0], cpu",
    ),
    "module_without_caps": (
        nn.Linear(2, 2), ValueError, "caps: got a Linear without any DReLU; expected at least one"
    ),
    "fixed_caps": (
        nn.Sequential(dreluop.SReLU(1.0)), ValueError, "caps: got a Sequential without any DReLU; expected at least one"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_CAPS)
def test_bad_caps_of_cap_penalty(name: str) -> None:
    caps, error, message = BAD_CAPS[name]
    with pytest.raises(error, match=re.escape(message)):
        dreluop.cap_penalty(caps, 1.0)


@pytest.mark.parametrize("name", [name for name in BAD_OPTIONS if name.startswith("balancer")])
def test_bad_balancer_of_cap_penalty(name: str) -> None:
    keywords, error, message = BAD_OPTIONS[name]
    with pytest.raises(error, match=re.escape(message)):
        dreluop.cap_penalty(CAP, keywords["balancer"])
    with pytest.raises(error, match=re.escape(message)):
        dreluop.DReLU(3).penalty(keywords["balancer"])


def test_penalty_of_a_lazy_cap_without_shape_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"caps\[0\]: got the cap of a LazyDReLU without a shape"):
        dreluop.cap_penalty(nn.Sequential(dreluop.LazyDReLU()), 1.0)


@pytest.mark.parametrize("cap", [1, 0.5, 0, -1, math.inf, math.nan], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_cap_as_a_number(cap: float, dtype: torch.dtype) -> None:
    x = X.to(dtype)
    expected = oracle.forward(x, torch.tensor(cap, dtype=torch.float64).to(dtype))
    oracle.assert_same_bits(dreluop.capped_relu(x, cap), expected)
    oracle.assert_same_bits(dreluop.capped_relu(x, torch.tensor(cap, dtype=dtype)), expected)
    counts = dreluop.saturation(x, cap)
    assert counts.off.shape == ()
    assert sum(part.item() for part in counts[:3]) == x.numel()


def test_gradient_with_a_cap_as_a_number() -> None:
    x = torch.tensor([-1.0, 0.5, 2.0], requires_grad=True)
    dreluop.capped_relu(x, 1).sum().backward()
    assert x.grad.tolist() == [0, 1, 0]


@pytest.mark.parametrize("save", ["output", "mask"])
@pytest.mark.parametrize("needs_grad", [False, True], ids=["", "needs_grad"])
@pytest.mark.parametrize("dtypes", [*MIXED_DTYPES, *zip(DTYPES, DTYPES, strict=True)], ids=mixed_id)
@pytest.mark.parametrize("case", FEW_CASES, ids=str)
def test_values_on_every_path(case: Case, dtypes: tuple[torch.dtype, torch.dtype], needs_grad: bool, save: str) -> None:
    x, cap = (t.requires_grad_(needs_grad) for t in case.inputs(*dtypes))
    expected = oracle.forward(x.detach(), cap.detach(), case.dim)
    y = dreluop.capped_relu(x, cap, dim=case.dim, save=save)
    oracle.assert_same_bits(y, expected)
    assert (y.requires_grad, y.stride()) == (needs_grad, torch.empty_like(x).stride())
    with_penalty, penalty = dreluop.capped_relu(x, cap, dim=case.dim, save=save, balancer=0.5)
    oracle.assert_same_bits(with_penalty, expected)
    assert (penalty.shape, penalty.dtype, penalty.requires_grad) == ((), oracle.accumulator(cap), needs_grad)
    assert penalty.item() == pytest.approx(oracle.penalty([cap.detach()], 0.5))


def test_balancer_may_be_zero_or_an_integer() -> None:
    assert dreluop.capped_relu(X, CAP, balancer=0)[1].item() == 0
    assert dreluop.capped_relu(X, CAP, balancer=2)[1].item() == 6
    assert dreluop.cap_penalty(CAP, 0).item() == 0


def two_layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), dreluop.DReLU(4, init=2.0), nn.Sequential(dreluop.DReLU(init=3.0)))


PENALIZED: dict[str, tuple[Callable[[], Any], float]] = {
    "tensor": (lambda: torch.full((2, 3), 2.0), 24),
    "list": (lambda: [torch.full((2,), 2.0), torch.tensor(3.0)], 17),
    "tuple": (lambda: (torch.full((2,), 2.0),), 8),
    "generator": (lambda: (torch.full((n,), 2.0) for n in range(4)), 24),
    "module": (two_layers, 25),
    "one_DReLU": (lambda: dreluop.DReLU(3, init=2.0), 12),
    "module_list": (lambda: nn.ModuleList([dreluop.DReLU(init=2.0), dreluop.SReLU(9.0)]), 4),
    "dict_values": ({"a": torch.ones(2), "b": torch.ones(1)}.values, 3),
    "one_tensor_twice": (lambda: [CAP, CAP], 6),
}


@pytest.mark.parametrize("name", PENALIZED)
def test_cap_penalty(name: str) -> None:
    make, squares = PENALIZED[name]
    penalty = dreluop.cap_penalty(make(), 0.5)
    assert (penalty.shape, penalty.dtype, penalty.item()) == ((), torch.float32, squares / 2)


def test_cap_penalty_of_shared_caps_counts_each_once() -> None:
    module = dreluop.DReLU(init=2.0)
    shared = dreluop.DReLU(init=7.0)
    shared.cap = module.cap
    model = nn.Sequential(module, module, shared)
    penalty = dreluop.cap_penalty(model, 1.0)
    assert penalty.item() == 4
    penalty.backward()
    assert module.cap.grad.item() == 4


def test_cap_penalty_gradient_of_a_cap_given_twice() -> None:
    cap = torch.tensor([1.0, 2.0], requires_grad=True)
    dreluop.cap_penalty([cap, cap], 1.0).backward()
    assert cap.grad.tolist() == [4, 8]


def test_cap_penalty_of_mixed_dtypes() -> None:
    caps = [torch.full((2,), 3.0, dtype=dtype, requires_grad=True) for dtype in DTYPES]
    penalty = dreluop.cap_penalty(caps, 0.5)
    assert (penalty.dtype, penalty.item()) == (torch.float64, 36)
    penalty.backward()
    for cap in caps:
        assert (cap.grad.dtype, cap.grad.tolist()) == (cap.dtype, [3, 3])


def test_cap_penalty_without_gradient() -> None:
    model = two_layers()
    with torch.no_grad():
        assert not dreluop.cap_penalty(model, 1.0).requires_grad
    frozen = dreluop.DReLU(2)
    frozen.cap.requires_grad_(False)
    dreluop.cap_penalty([*model.parameters(), frozen.cap], 1.0).backward()
    assert frozen.cap.grad is None


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("case", [*FEW_CASES, Case((0, 4), (4,)), Case((4, 0), (0,)), Case((3, 0, 5), ())], ids=str)
def test_saturation(case: Case, dtype: torch.dtype) -> None:
    x, cap = case.inputs(dtype)
    result = dreluop.saturation(x.requires_grad_(), cap.requires_grad_(), dim=case.dim)
    assert isinstance(result, dreluop.Saturation)
    counts, has_gradient = oracle.saturation(x.detach(), cap.detach(), case.dim)
    for got, want in zip(result, (*counts, has_gradient), strict=True):
        oracle.assert_same_bits(got, want)
        assert not got.requires_grad
    assert result._fields == ("off", "inside", "capped", "has_gradient")


def test_a_dead_sample_has_no_gradient_and_a_live_one_has() -> None:
    x = torch.tensor([[-1.0, 5.0], [-1.0, 0.5], [7.0, 7.0]], requires_grad=True)
    dreluop.capped_relu(x, 1.0).sum().backward()
    assert dreluop.saturation(x, 1.0).has_gradient.tolist() == x.grad.any(1).tolist() == [False, True, False]


def raw_errors() -> dict[str, tuple[str, tuple[Any, ...], str]]:
    """Operator, arguments, and the name of the argument that its error must hold."""
    y, mask = X.clamp(0, 1), torch.zeros(15, dtype=torch.uint8)
    overlapping = torch.ones(4, 1, 5).expand(4, 3, 5)

    def backward(grad: Tensor, saved: Tensor, cap: Tensor = CAP, order: tuple[int, ...] = ()) -> tuple[Any, ...]:
        return (grad, saved, cap, 1, order, True, True, None, None)

    return {
        "forward-x": ("capped_relu", (X.long(), CAP, 1), "x"),
        "forward-cap": ("capped_relu", (X, CAP.long(), 1), "cap"),
        "forward-cap_shape": ("capped_relu", (X, torch.ones(4), 1), "cap"),
        "forward-cap_rank": ("capped_relu", (X, torch.ones(1, 3, 1), 1), "cap"),
        "forward-dim": ("capped_relu", (X, CAP, 7), "dim"),
        "forward_-overlap": ("capped_relu_", (overlapping, CAP, 1), "inplace"),
        "forward_-cap_shape": ("capped_relu_", (X.clone(), torch.ones(4), 1), "cap"),
        "capped_relu_with_aux-cap_shape": ("capped_relu_with_aux", (X, torch.ones(4), 1, True, None), "cap"),
        "capped_relu_with_aux_-overlap": ("capped_relu_with_aux_", (overlapping, CAP, 1, True, 1.0), "inplace"),
        "backward-grad_shape": ("capped_relu_backward", backward(X[:2], y), "grad"),
        "backward-grad_dtype": ("capped_relu_backward", backward(X.double(), y), "grad"),
        "backward-cap_shape": ("capped_relu_backward", backward(X, y, torch.ones(4)), "cap"),
        "backward-mask_size": ("capped_relu_backward", backward(X, mask[:-1], order=(0, 1, 2)), "saved"),
        "backward-mask_rank": ("capped_relu_backward", backward(X, mask.view(3, 5), order=(0, 1, 2)), "saved"),
        "backward-order_missing": ("capped_relu_backward", backward(X, mask), "order"),
        "backward-order_repeated": ("capped_relu_backward", backward(X, mask, order=(0, 1, 1)), "order"),
        "backward-order_outside": ("capped_relu_backward", backward(X, mask, order=(0, 1, 3)), "order"),
        "backward-grad_penalty": (
            "capped_relu_backward",
            (X, y, CAP, 1, (), True, True, 1.0, torch.ones(2)),
            "grad_penalty",
        ),
        "tangent-u_shape": ("capped_relu_jvp", (X[:2], None, y, CAP, 1, ()), "u"),
        "tangent-v_shape": ("capped_relu_jvp", (X, torch.ones(4), y, CAP, 1, ()), "v"),
        "tangent-mask_size": ("capped_relu_jvp", (X, None, mask[:-1], CAP, 1, (0, 1, 2)), "saved"),
        "surrogate-grad_shape": ("capped_relu_surrogate_backward", (X[:2], y, CAP, 1, (), None), "grad"),
        "surrogate-cap_shape": ("capped_relu_surrogate_backward", (X, y, torch.ones(4), 1, (), None), "cap"),
        "surrogate-width_shape": ("capped_relu_surrogate_backward", (X, y, CAP, 1, (), torch.ones(4)), "width"),
        "surrogate-width_dtype": ("capped_relu_surrogate_backward", (X, y, CAP, 1, (), CAP.long()), "width"),
        "surrogate-width_of_mask": ("capped_relu_surrogate_backward", (X, mask, CAP, 1, (0, 1, 2), CAP), "saved"),
        "surrogate-mask_size": ("capped_relu_surrogate_backward", (X, mask[:-1], CAP, 1, (0, 1, 2), None), "saved"),
        "saturation-cap_shape": ("cap_saturation", (X, torch.ones(4), 1), "cap"),
        "saturation-scalar": ("cap_saturation", (torch.ones(()), torch.ones(()), 0), "x"),
        "penalty-empty": ("cap_penalty", ([], 1.0), "caps"),
        "penalty-integer": ("cap_penalty", ([CAP.long()], 1.0), "cap"),
        "penalty_backward-grad": ("cap_penalty_backward", (torch.ones(2), [CAP], 1.0), "grad"),
    }  # fmt: skip


@pytest.mark.parametrize("name", raw_errors())
def test_raw_operator_names_the_bad_argument(backend, name: str) -> None:
    operator, arguments, argument = raw_errors()[name]
    with pytest.raises((RuntimeError, TypeError, ValueError), match=rf"\b{argument}\b") as error:
        getattr(backend, operator)(*arguments)
    assert not isinstance(error.value, NotImplementedError)
