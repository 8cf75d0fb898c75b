"""Numbers, sizes and flags of numpy and of torch as arguments, and numbers that a dtype cannot hold."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn.utils import prune

import dreluop
from dreluop import DReLU, LazyDReLU, SReLU, capped_relu, surgery
from dreluop._internal.checks import rounded
from dreluop.diagnostics import SaturationMonitor
from tests.support import oracle

X = torch.tensor([[-1.0, 0.5, 3.0, 200.0]])
FOURS = (np.int64(4), np.uint8(4), np.array(4), torch.tensor(4), torch.tensor(4, dtype=torch.int8))
HALVES = (np.float32(0.5), np.float64(0.5), np.float16(0.5), np.array(0.5), torch.tensor(0.5), Fraction(1, 2))
HUGE = 10**5000


def kind(value: Any) -> str:
    return f"{type(value).__name__}-{getattr(value, 'dtype', '')}"


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


@pytest.mark.parametrize("four", FOURS, ids=kind)
def test_sizes(four: Any) -> None:
    assert DReLU(four).cap.shape == (4,) and type(DReLU(four).num_parameters) is int
    assert DReLU([four, 2]).cap.shape == (4, 2)


@pytest.mark.parametrize(
    "shape", [np.array([3, 5]), torch.tensor([3, 5]), range(3, 6, 2), [np.int32(3), torch.tensor(5)]], ids=str
)
def test_shapes(shape: Any) -> None:
    assert DReLU(shape).num_parameters == (3, 5)


@pytest.mark.parametrize("one", [np.int64(1), np.array(1), torch.tensor(1)], ids=str)
def test_dimensions(one: Any) -> None:
    x, cap = torch.randn(4, 3, 3), torch.rand(3)
    oracle.assert_same_bits(capped_relu(x, cap, dim=one), oracle.forward(x, cap, 1))
    assert torch.equal(dreluop.saturation(x, cap, one).off, dreluop.saturation(x, cap, 1).off)
    for module in (DReLU(3, dim=one), SReLU(cap, dim=one), LazyDReLU("channel", dim=one)):
        module(x)
        assert type(module.dim) is int and module.dim == 1


@pytest.mark.parametrize("yes", [np.True_, np.array(True), torch.tensor(True)], ids=kind)
def test_flags(yes: Any) -> None:
    x = X.clone()
    assert capped_relu(x, 1.0, inplace=yes) is x
    for module in (DReLU(inplace=yes), SReLU(1.0, inplace=yes), LazyDReLU(inplace=yes)):
        assert module.inplace is True
    model = nn.Sequential(DReLU(2))
    surgery.freeze_caps(model, yes)
    assert not model[0].cap.requires_grad
    surgery.calibrate_caps(model, [torch.ones(1, 2)], progress=np.False_)


@pytest.mark.parametrize("half", HALVES, ids=kind)
def test_numbers(half: Any) -> None:
    for module in (DReLU(2, half), LazyDReLU(init=half), SReLU(half)):
        oracle.assert_same_bits(module(X[:, 1:3]).detach(), torch.tensor([[0.5, 0.5]]))
    assert type(DReLU(2, half).init) is float
    oracle.assert_same_bits(capped_relu(X, half), oracle.forward(X, torch.tensor(0.5)))
    assert capped_relu(X, torch.tensor(2.0), balancer=half)[1].item() == 2
    assert dreluop.cap_penalty(torch.ones(3), half).item() == 1.5
    model = nn.Sequential(DReLU(2))
    groups = dreluop.param_groups(model, half, half, balancer=half, weight_decay=half)
    assert (groups[1]["weight_decay"], groups[0]["weight_decay"]) == (1.0, 0.5)
    surgery.set_caps(model, half)
    assert model[0].cap.tolist() == [0.5, 0.5]
    surgery.calibrate_caps(model, [torch.ones(1, 2)], quantile=half, floor=half, relative_error=half)
    dreluop.project_caps(model, half)
    with dreluop.adaptive.surrogate_backward("soft", half, std=half):
        model(X[:, :2])


def test_whole_numbers_elsewhere() -> None:
    monitor = SaturationMonitor(nn.Sequential(DReLU(2)), every=np.int64(3), patience=torch.tensor(2))
    assert (monitor._every, monitor._patience) == (3, 2)
    assert surgery.insert_head(network(), np.int64(5), init=np.float32(0.5)).head.out_features == 5
    stemmed = surgery.insert_stem(nn.Sequential(nn.Conv2d(3, 2, 3)), np.int64(4), kernel_size=torch.tensor(5))
    assert stemmed.stem.weight.shape == (4, 3, 5, 5)
    surgery.replace_activations(network(), init=np.float32(0.5), fuse=np.False_)


BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "size_string": (lambda: DReLU("8"), TypeError, "num_parameters: got str '8'; expected an int or a shape"),
    "size_bytes": (lambda: DReLU(b"ab"), TypeError, "num_parameters: got bytes b'ab'; expected an int or a shape"),
    "size_float": (lambda: DReLU(np.float64(4)), TypeError, "num_parameters: got float64; expected an int or a shape"),
    "size_float_tensor": (lambda: DReLU(torch.tensor(4.0)), TypeError, "num_parameters: got Tensor of shape () and"),
    "size_bool": (lambda: DReLU(np.True_), TypeError, "num_parameters: got bool"),
    "size_bool_tensor": (lambda: DReLU(torch.tensor(True)), TypeError, "num_parameters: got Tensor of shape () and"),
    "size_bool_in_shape": (lambda: DReLU([True, 2]), ValueError, "num_parameters: got [True, 2]; expected a positive"),
    "size_matrix": (lambda: DReLU(np.array([[1]])), TypeError, "num_parameters: got ndarray; expected an int or a"),
    "size_huge": (lambda: DReLU(HUGE), ValueError, "num_parameters: got an int of 16610 bits; expected one of 63 bits"),
    "size_zero": (lambda: DReLU(np.int64(0)), ValueError, "num_parameters: got 0; expected a positive int"),
    "dim": (lambda: DReLU(dim="a"), TypeError, "dim: got str; expected an int"),
    "dim_bool": (lambda: SReLU(1.0, dim=True), TypeError, "dim: got bool; expected an int"),
    "dim_lazy": (lambda: LazyDReLU(dim=1.0), TypeError, "dim: got float; expected an int"),
    "inplace": (lambda: DReLU(inplace="x"), TypeError, "inplace: got str; expected a bool"),
    "inplace_fixed": (lambda: SReLU(1.0, inplace=1), TypeError, "inplace: got int; expected a bool"),
    "inplace_lazy": (lambda: LazyDReLU(inplace=None), TypeError, "inplace: got NoneType; expected a bool"),
    "inplace_call": (lambda: capped_relu(X.clone(), 1.0, inplace="x"), TypeError, "inplace: got str; expected a bool"),
    "cap_string": (lambda: SReLU("6"), TypeError, "cap: got str; expected a torch.Tensor or a number"),
    "cap_bool": (lambda: SReLU(True), TypeError, "cap: got bool; expected a torch.Tensor or a number"),
    "cap_list": (lambda: SReLU([1.0]), TypeError, "cap: got list; expected a torch.Tensor or a number"),
    "cap_huge": (lambda: SReLU(HUGE), ValueError, "cap: got an int of 16610 bits; expected a number in the range of"),
    "cap_above": (lambda: SReLU(1e300), ValueError, "cap: got 1e+300, which torch.float32 rounds to inf; expected a"),
    "cap_below": (lambda: SReLU(1e-300), ValueError, "cap: got 1e-300, which torch.float32 rounds to 0; expected a"),
    "init_string": (lambda: LazyDReLU(init="1"), TypeError, "init: got str; expected a number"),
    "init_vector": (lambda: DReLU(init=torch.ones(1)), TypeError, "init: got Tensor of shape (1,) and torch.float32"),
    "init_learned": (lambda: DReLU(init=torch.ones((), requires_grad=True)), TypeError, "init: got Tensor that requir"),
    "init_meta": (lambda: DReLU(init=torch.ones((), device="meta")), TypeError, "init: got Tensor of shape () and"),
    "init_huge": (lambda: DReLU(init=HUGE), ValueError, "init: got an int of 16610 bits; expected a number in the"),
    "init_fraction": (lambda: DReLU(init=Fraction(HUGE)), ValueError, "init: got a Fraction; expected a number in the"),
    "init_small": (
        lambda: DReLU(2, 1e-9, dtype=torch.float16), ValueError,
        "init: got 1e-09, which torch.float16 rounds to 0; expected a number in its range",
    ),
    "init_large": (
        lambda: DReLU(2, 1e6, dtype=torch.float16), ValueError, "init: got 1e+06, which torch.float16 rounds to inf"
    ),
    "init_lazy": (
        lambda: LazyDReLU("channel", 1e-9, dtype=torch.float16), ValueError, "init: got 1e-09, which torch.float16"
    ),
    "init_of_reset": (lambda: DReLU(2, 1e6).half().reset_parameters(), ValueError, "init: got 1e+06, which torch.fl"),
    "init_of_surgery": (
        lambda: surgery.replace_activations(network().half(), granularity="layer", init=1e6), ValueError,
        "init of '1': got 1e+06, which torch.float16 rounds to inf",
    ),
    "init_of_head": (lambda: surgery.insert_head(network().half(), init=1e6), ValueError, "init: got 1e+06, which"),
    "minimum": (lambda: dreluop.project_caps(DReLU(2), HUGE), ValueError, "minimum: got an int of 16610 bits; expect"),
    "lr": (lambda: dreluop.param_groups(DReLU(2), 10**400), ValueError, "lr: got an int of 1329 bits; expected a"),
    "value": (lambda: surgery.set_caps(DReLU(2), 10**400), ValueError, "value: got an int of 1329 bits; expected a"),
    "value_infinite": (
        lambda: surgery.set_caps(nn.Sequential(nn.ReLU(), DReLU(2)), 1e300), ValueError,
        "value of '1': got 1e+300, which torch.float32 rounds to inf; expected numbers in its range",
    ),
    "value_negative": (lambda: surgery.set_caps(DReLU(2), -1), ValueError, "value: got -1; expected only numbers > 0"),
    "value_one_negative": (
        lambda: surgery.set_caps(DReLU(2), torch.tensor([1.0, -2.0])), ValueError,
        "value: got -2; expected only numbers > 0",
    ),
    "value_nan": (lambda: surgery.set_caps(DReLU(2), math.nan), ValueError, "value: got nan; expected only numbers"),
    "pruned": (
        lambda: prune.l1_unstructured(DReLU(2), "cap", 1).reset_parameters(), ValueError,
        "model: the cap is none of its parameters but made of one, by a hook",
    ),
    "dtype_integer": (lambda: DReLU(2, dtype=torch.int8), TypeError, "dtype: got dtype torch.int8; expected float32"),
    "dtype_bool": (lambda: LazyDReLU(dtype=torch.bool), TypeError, "dtype: got dtype torch.bool; expected float32"),
    "dtype_string": (lambda: DReLU(2, dtype="half"), TypeError, "dtype: got str; expected float32, float64, float16"),
    "quantile": (lambda: surgery.calibrate_caps(DReLU(2), [X], HUGE), ValueError, "quantile: got an int of 16610 bits"),
    "progress": (lambda: surgery.calibrate_caps(DReLU(2), [X], progress="x"), TypeError, "progress: got str; expected"),
    "max_bytes": (lambda: surgery.calibrate_caps(DReLU(2), [X], max_bytes="x"), TypeError, "max_bytes: got str; expec"),
    "every": (lambda: SaturationMonitor(DReLU(2), every=HUGE), ValueError, "every: got an int of 16610 bits; expected"),
    "every_flag": (lambda: SaturationMonitor(DReLU(2), every=np.True_), TypeError, "every: got bool; expected an int"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad(name: str) -> None:
    call, error, message = BAD[name]
    with pytest.raises(error, match="^" + re.escape(message)):
        call()


def test_tau_out_of_range() -> None:
    with (
        pytest.raises(ValueError, match="tau: got an int of 1329 bits"),
        dreluop.adaptive.surrogate_backward("soft", 10**400),
    ):
        pass


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_rounding_is_that_of_a_cast(dtype: torch.dtype) -> None:
    limits = torch.finfo(dtype)
    smallest = limits.smallest_normal * limits.eps
    edges = [
        0.0, 1.0, limits.max, limits.max * (1 + limits.eps / 8), limits.max * (1 + limits.eps / 2), 1e308, math.inf,
        smallest, smallest / 2, smallest * 0.51, smallest * 0.49, limits.smallest_normal, 5e-324,
    ]  # fmt: skip
    for edge in [*edges, *(-edge for edge in edges)]:
        want = torch.tensor(edge, dtype=torch.float64).to(dtype)
        oracle.assert_same_bits(torch.full((), rounded(edge, dtype), dtype=dtype), want)
    assert math.isnan(rounded(math.nan, dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("number", [1e300, -1e300, 65510.0, 1e-60, 0, -1, math.inf, math.nan], ids=str)
def test_a_number_is_rounded_as_a_tensor_is(number: float, dtype: torch.dtype) -> None:
    x = torch.tensor([-math.inf, -1.0, 0.5, 1000.0, math.inf]).to(dtype)
    want = oracle.forward(x, torch.tensor(number, dtype=torch.float64))
    oracle.assert_same_bits(capped_relu(x, number), want)
    oracle.assert_same_bits(capped_relu(x, torch.tensor(number, dtype=torch.float64)), want)


@pytest.mark.parametrize("cap", [0, -1, -math.inf, math.nan, math.inf], ids=str)
def test_a_fixed_cap_is_any_number(cap: float) -> None:
    oracle.assert_same_bits(SReLU(cap)(X), oracle.forward(X, torch.tensor(float(cap))))


def test_the_largest_number_of_a_dtype_is_where_more_than_it_is_rounded_to() -> None:
    assert DReLU(2, 65519.9, dtype=torch.float16).cap.tolist() == [65504.0] * 2


def test_caps_are_checked_where_tensors_cannot_be_read() -> None:
    with torch.device("meta"):
        assert DReLU(2, 0.5).cap.is_meta
        with pytest.raises(ValueError, match="init: got 1e-09"):
            DReLU(2, 1e-9, dtype=torch.float16)
    with FakeTensorMode():
        assert SReLU(0.5)(DReLU(2, 0.5)(torch.ones(3, 2))).shape == (3, 2)
        assert capped_relu(torch.ones(2), 1e300).shape == (2,)


class TestInfiniteCap:
    @pytest.mark.parametrize("inf", [math.inf, np.inf, torch.tensor(math.inf)], ids=["math", "numpy", "torch"])
    def test_is_plain_relu(self, inf: Any) -> None:
        values = torch.tensor([-1.0, 0.0, 2.0, 3e38, math.nan])
        g = torch.tensor([3.0, 5.0, 7.0, 11.0, 13.0])
        lazy = LazyDReLU("channel", inf, dim=0)
        for module in (DReLU(1, inf), DReLU(5, inf, dim=0, save="mask"), lazy):
            x = values.clone().requires_grad_()
            y = module(x)
            y.backward(g)
            oracle.assert_same_bits(y.detach(), oracle.forward(values, torch.tensor(math.inf)))
            assert x.grad is not None and module.cap.grad is not None
            assert x.grad.tolist() == [0, 0, 7, 11, 13]
            assert not module.cap.grad.any()

    def test_never_learns(self) -> None:
        module = DReLU(1, math.inf)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        module(X).sum().backward()
        optimizer.step()
        assert module.cap.tolist() == [math.inf]
        module.reset_parameters()
        assert module.cap.tolist() == [math.inf]

    def test_penalty_is_infinite(self) -> None:
        assert DReLU(2, math.inf).penalty(0.1).item() == math.inf

    def test_repr(self) -> None:
        assert [repr(m) for m in (DReLU(2, math.inf), LazyDReLU(init=math.inf), SReLU(math.inf))] == [
            "DReLU(2, init=inf, dim=1)", 'LazyDReLU("layer", init=inf)', "SReLU(cap=inf)"
        ]  # fmt: skip

    def test_surgery_and_calibration(self) -> None:
        model = network()
        want = model(X)
        for change in (surgery.replace_activations, surgery.insert_head):
            changed = copy.deepcopy(model)
            change(changed, granularity="layer", init=math.inf)
            assert [m.cap.item() for m in changed.modules() if isinstance(m, DReLU)] == [math.inf]
            if change is surgery.replace_activations:
                assert torch.equal(changed(X), want)
                assert torch.equal(surgery.to_torch(changed)(X), want)
        surgery.replace_activations(model, granularity="layer", init=math.inf)
        before = model[0](X).detach()
        assert surgery.cap_summary(model, [X]).layers[0].cap_max == math.inf
        surgery.calibrate_caps(model, [X], quantile=1.0, floor=1e-3)
        assert model[1].cap.item() == pytest.approx(max(before.max().item(), 1e-3))

    @pytest.mark.parametrize("init", [math.nan, -math.inf], ids=str)
    def test_nan_and_minus_infinity_stay_refused(self, init: float) -> None:
        for make in (DReLU, LazyDReLU):
            with pytest.raises(ValueError, match=r"init: got .*; expected a finite number > 0, or inf for plain ReLU"):
                make(init=init)


LAYOUTS: dict[str, Callable[[], Tensor]] = {
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "jagged": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "csr": lambda: torch.eye(3).to_sparse_csr(),
    "mkldnn": lambda: torch.eye(3).to_mkldnn(),
    "quantized": lambda: torch.quantize_per_tensor(torch.eye(3), 0.1, 0, torch.quint8),
}
TAKERS: dict[str, tuple[str, Callable[[Tensor], Any]]] = {
    "x": ("x", lambda t: capped_relu(t, torch.ones(1, requires_grad=True))),
    "x_number": ("x", lambda t: capped_relu(t, 1.0)),
    "x_in_place": ("x", lambda t: capped_relu(t, torch.ones(1), inplace=True)),
    "x_mask": ("x", lambda t: capped_relu(t, 1.0, save="mask", balancer=0.5)),
    "cap": ("cap", lambda t: capped_relu(torch.ones(3, 3), t)),
    "bias": ("bias", lambda t: capped_relu(torch.ones(3, 3), 1.0, bias=t)),
    "residual": ("residual", lambda t: capped_relu(torch.ones(3, 3), 1.0, residual=t)),
    "DReLU": ("x", DReLU(3)),
    "SReLU": ("x", SReLU(1.0)),
    "LazyDReLU": ("x", lambda t: LazyDReLU("channel", dim=0)(t)),  # noqa: PLW0108 (each a new one)
    "cap_of_SReLU": ("cap", SReLU),
    "penalty": ("caps[0]", lambda t: dreluop.cap_penalty(t, 0.5)),
    "saturation": ("x", lambda t: dreluop.saturation(t, 1.0)),
    "set_caps": ("value", lambda t: surgery.set_caps(DReLU(3), t)),
}


@pytest.mark.filterwarnings("ignore:.*prototype:UserWarning", "ignore:.*beta state:UserWarning")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("taker", TAKERS)
def test_layouts_are_refused_by_name(taker: str, layout: str) -> None:
    name, call = TAKERS[taker]
    with pytest.raises(
        TypeError, match=rf"^{re.escape(name)}: got (a nested tensor|layout torch\.|dtype torch\.quint8)"
    ):
        call(LAYOUTS[layout]())
