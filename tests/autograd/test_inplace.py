"""The in-place form: version counters on every path, gradients, and the errors that come before anything is changed."""

from __future__ import annotations

from collections.abc import Callable

import numpy
import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

import dreluop
from tests.support import oracle
from tests.support.cases import DTYPES, OVERLAPPING, WRITABLE_CASES, Case, dtype_id

pytestmark = pytest.mark.usefixtures("both_nodes")

# Every way to write over x. Each writes capped_relu(x, cap) over x.
WRITERS: dict[str, Callable[[Tensor, Tensor], object]] = {
    "capped_relu": lambda x, cap: dreluop.capped_relu(x, cap, inplace=True),
    "capped_relu_mask": lambda x, cap: dreluop.capped_relu(x, cap, inplace=True, save="mask"),
    "capped_relu_balancer": lambda x, cap: dreluop.capped_relu(x, cap, inplace=True, balancer=0.5),
    "capped_relu_mask_balancer": lambda x, cap: dreluop.capped_relu(x, cap, inplace=True, save="mask", balancer=0.5),
    "Function": lambda x, cap: dreluop.CappedReLUFunction.apply(x, cap, inplace=True),
    "ops.capped_relu_": torch.ops.dreluop.capped_relu_.default,
    "ops.capped_relu_with_aux_": lambda x, cap: torch.ops.dreluop.capped_relu_with_aux_(x, cap, 1, False, None),
    "ops.capped_relu_with_aux_mask": lambda x, cap: torch.ops.dreluop.capped_relu_with_aux_(x, cap, 1, True, 0.5),
    "SReLU": lambda x, cap: dreluop.SReLU(cap, inplace=True)(x),
    "DReLU": lambda x, cap: dreluop.DReLU(cap.numel(), init=cap.max().item(), inplace=True)(x),
}
by_writer = pytest.mark.parametrize("writer", WRITERS)
CONTEXTS = {"grad": torch.enable_grad, "no_grad": torch.no_grad}
by_context = pytest.mark.parametrize("context", CONTEXTS)


@by_writer
@by_context
@pytest.mark.parametrize("cap_needs_grad", [False, True], ids=["", "cap_needs_grad"])
def test_version_counter_counts_every_write(writer: str, context: str, cap_needs_grad: bool) -> None:
    x, cap = torch.randn(4, 3), torch.ones(3, requires_grad=cap_needs_grad)
    before = x._version
    with CONTEXTS[context]():
        WRITERS[writer](x, cap)
    assert x._version > before
    assert x.detach().max() <= 1


@by_writer
@by_context
def test_version_counter_of_a_tensor_in_a_graph(writer: str, context: str) -> None:
    x = torch.randn(4, 3, requires_grad=True) * 1
    before = x._version
    with CONTEXTS[context]():
        WRITERS[writer](x, torch.ones(3))
    assert x._version > before


@by_writer
def test_change_of_a_tensor_that_sigmoid_saved_is_noticed(writer: str) -> None:
    source = torch.randn(4, 3, requires_grad=True)
    probability = torch.sigmoid(source)
    with torch.no_grad():
        WRITERS[writer](probability, torch.full((3,), 0.5))
    assert probability.max() <= 0.5
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        probability.sum().backward()


@by_writer
def test_change_of_the_base_through_a_view_is_noticed(writer: str) -> None:
    probability = torch.sigmoid(torch.randn(4, 6, requires_grad=True))
    with torch.no_grad():
        WRITERS[writer](probability[:, ::2], torch.full((3,), 0.5))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        probability.sum().backward()


@by_writer
def test_inference_mode(writer: str) -> None:
    values = torch.randn(4, 3)
    with torch.inference_mode():
        x = values.clone()
        WRITERS[writer](x, torch.ones(3))
        oracle.assert_same_bits(x, oracle.forward(values, torch.ones(3)))
    outside = values.clone()
    with torch.inference_mode():
        before = outside._version
        WRITERS[writer](outside, torch.ones(3))
        assert outside._version > before


@pytest.mark.parametrize("writer", [name for name in WRITERS if name.startswith("capped_relu") or "ReLU" in name])
def test_tensor_of_inference_mode_outside_of_it(writer: str) -> None:
    values = torch.randn(4, 3)
    with torch.inference_mode():
        x = values.clone()
    with pytest.raises(ValueError, match="x was made in inference mode"):
        WRITERS[writer](x, torch.ones(3))
    oracle.assert_same_bits(x, values)


@pytest.mark.parametrize("save", ["output", "mask"])
@pytest.mark.parametrize("balancer", [None, 0.5], ids=["", "balancer"])
@by_context
def test_returns_x_itself(context: str, save: str, balancer: float | None) -> None:
    with CONTEXTS[context]():
        x = torch.randn(4, 3, requires_grad=True) * 1
        cap = torch.ones(3, requires_grad=True)
        result = dreluop.capped_relu(x, cap, inplace=True, save=save, balancer=balancer)
    y = result if balancer is None else result[0]
    assert y is x
    assert y.requires_grad == (context == "grad")


def gradients(
    case: Case, dtype: torch.dtype, inplace: bool, save: str, balancer: float | None
) -> tuple[Tensor, list[Tensor]]:
    x, cap = case.inputs(dtype)
    leaf, cap = x.detach().clone().requires_grad_(), cap.requires_grad_()
    # Not a leaf, with the layout of x.
    hidden = case.lay_out(leaf * 1)
    result = dreluop.capped_relu(hidden, cap, dim=case.dim, inplace=inplace, save=save, balancer=balancer)
    y, penalty = result if balancer is not None else (result, torch.zeros(()))
    assert (y is hidden) == inplace
    loss = (y * case.grad(dtype)).sum() + penalty
    return y.detach().clone(), list(torch.autograd.grad(loss, (leaf, cap)))


@pytest.mark.parametrize("save", ["output", "mask"])
@pytest.mark.parametrize("balancer", [None, 0.5], ids=["", "balancer"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_id)
@pytest.mark.parametrize("case", WRITABLE_CASES[::2], ids=str)
def test_gradients_equal_those_of_the_other_form(
    case: Case, dtype: torch.dtype, save: str, balancer: float | None
) -> None:
    y, in_place = gradients(case, dtype, True, save, balancer)
    expected, out_of_place = gradients(case, dtype, False, save, balancer)
    oracle.assert_same_bits(y, expected)
    oracle.assert_same_bits(in_place[0], out_of_place[0])
    # The sums may be taken in another order where y has other strides; on a view the penalty's gradient is added by
    # autograd, after a rounding of its own to the cap's dtype.
    atol = 2 * torch.finfo(dtype).eps * out_of_place[1].abs().nan_to_num(0).amax().item() if expected.numel() else 0.0
    torch.testing.assert_close(in_place[1], out_of_place[1], rtol=torch.finfo(dtype).eps, atol=atol)


@pytest.mark.parametrize("save", ["output", "mask"])
def test_chain_of_layers_in_place(save: str) -> None:
    weight, cap = torch.randn(6, 6, requires_grad=True), torch.rand(6, requires_grad=True)

    def network(inplace: bool) -> Tensor:
        hidden = torch.linspace(-1, 1, 30).view(5, 6) @ weight
        for _ in range(3):
            hidden = dreluop.capped_relu(hidden, cap, inplace=inplace, save=save) @ weight
        return hidden.square().sum()

    in_place, out_of_place = (torch.autograd.grad(network(inplace), (weight, cap)) for inplace in (True, False))
    for got, want in zip(in_place, out_of_place, strict=True):
        torch.testing.assert_close(got, want)


def test_part_of_a_tensor_in_a_graph() -> None:
    source, cap = torch.randn(4, 6, requires_grad=True), torch.full((1,), 0.5, requires_grad=True)
    hidden = source * 1
    dreluop.capped_relu(hidden[:, :3], cap, inplace=True)
    hidden.sum().backward()
    inside = (source > 0) & (source < 0.5)
    inside[:, 3:] = True
    assert torch.equal(source.grad, inside.float())
    assert cap.grad.item() == (source[:, :3] >= 0.5).sum().item()


def test_no_gradient_for_x_but_one_for_the_cap() -> None:
    x, cap = torch.tensor([[-1.0, 0.5, 3.0]]), torch.ones(3, requires_grad=True)
    y = dreluop.capped_relu(x, cap, inplace=True)
    assert y is x and x.requires_grad
    y.backward(torch.ones(1, 3))
    assert cap.grad.tolist() == [0, 0, 1]


def test_second_order_and_forward_mode() -> None:
    source, cap = torch.tensor([-1.0, 0.5, 3.0], requires_grad=True), torch.tensor(1.0, requires_grad=True)
    y = dreluop.capped_relu(source * source, cap, inplace=True)
    (first,) = torch.autograd.grad((y**2).sum(), source, create_graph=True)
    assert first.tolist() == [0, 4 * 0.5**3, 0]
    (second,) = torch.autograd.grad(first.sum(), source)
    assert second.tolist() == [0, 12 * 0.5**2, 0]
    with torch.autograd.forward_ad.dual_level():
        x = torch.autograd.forward_ad.make_dual(torch.tensor([-1.0, 0.5, 3.0]), torch.tensor([2.0, 3.0, 4.0]))
        m = torch.autograd.forward_ad.make_dual(torch.tensor(1.0), torch.tensor(5.0))
        y = dreluop.capped_relu(x, m, inplace=True)
        assert torch.autograd.forward_ad.unpack_dual(y).tangent.tolist() == [0, 3, 5]


@pytest.mark.parametrize("with_tangent", ["x", "cap"])
def test_forward_mode_with_one_tangent(with_tangent: str) -> None:
    with torch.autograd.forward_ad.dual_level():
        x, cap = torch.tensor([-1.0, 0.5, 3.0]), torch.tensor(1.0)
        if with_tangent == "x":
            x = torch.autograd.forward_ad.make_dual(x, torch.tensor([2.0, 3.0, 4.0]))
        else:
            cap = torch.autograd.forward_ad.make_dual(cap, torch.tensor(5.0))
        y = dreluop.capped_relu(x, cap, inplace=True)
        tangent = torch.autograd.forward_ad.unpack_dual(y).tangent
        assert tangent.tolist() == ([0, 3, 0] if with_tangent == "x" else [0, 0, 5])


def refused() -> dict[str, Callable[[], tuple[Tensor, Tensor, str]]]:
    """x, cap and the message of everything that may not be written over."""
    case = Case((6, 5), ())

    def view_of_leaf() -> tuple[Tensor, Tensor, str]:
        return torch.randn(6, 5, requires_grad=True)[1:], torch.ones(()), "inplace: x is a view of a leaf tensor"

    def cap_inside_x() -> tuple[Tensor, Tensor, str]:
        x = torch.randn(6, 5)
        return x, x[0], "inplace: cap lies in the memory of x"

    def cap_is_x() -> tuple[Tensor, Tensor, str]:
        x = torch.randn(1)
        return x, x, "inplace: cap lies in the memory of x"

    def cap_between_elements_of_x() -> tuple[Tensor, Tensor, str]:
        buffer = torch.randn(6, 10)
        return buffer[:, ::2], buffer[3, 4:5], "inplace: cap lies in the memory of x"

    overlapping = {
        name: lambda name=name: (
            OVERLAPPING[name](torch.randn(case.shape)), torch.ones(()), "has several elements at one address"
        )
        for name in OVERLAPPING
    }  # fmt: skip
    interleaved = {
        "interleaved": lambda: (
            torch.randn(100).as_strided((3, 4), (3, 2)), torch.ones(()), "has several elements at one address"
        )
    }  # fmt: skip
    leaf = {"leaf": lambda: (torch.randn(6, 5, requires_grad=True), torch.ones(()), "inplace: x is a leaf tensor")}
    memory = {f.__name__: f for f in (view_of_leaf, cap_inside_x, cap_is_x, cap_between_elements_of_x)}
    return leaf | memory | overlapping | interleaved


@pytest.mark.parametrize("save", ["output", "mask"])
@pytest.mark.parametrize("balancer", [None, 0.5], ids=["", "balancer"])
@pytest.mark.parametrize("name", refused())
def test_refused_before_anything_is_changed(name: str, save: str, balancer: float | None) -> None:
    x, cap, message = refused()[name]()
    before, version = x.detach().clone(), x._version
    # The native operators raise RuntimeError where the rest raises ValueError.
    with pytest.raises((ValueError, RuntimeError), match=message):
        dreluop.capped_relu(x, cap, inplace=True, save=save, balancer=balancer, dim=-1)
    oracle.assert_same_bits(x.detach(), before)
    assert x._version == version


def test_leaf_may_be_written_without_grad_mode() -> None:
    leaf = torch.tensor([-1.0, 0.5, 3.0], requires_grad=True)
    with torch.no_grad():
        assert dreluop.capped_relu(leaf, 1.0, inplace=True) is leaf
    assert leaf.tolist() == [0, 0.5, 1]


def test_leaf_that_needs_no_gradient_with_a_cap_that_does() -> None:
    x = torch.tensor([-1.0, 0.5, 3.0])
    assert dreluop.capped_relu(x, torch.ones(1, requires_grad=True), inplace=True) is x


def test_cap_beside_x_in_one_buffer_is_legal() -> None:
    buffer = torch.tensor([-1.0, 0.5, 3.0, 1.0])
    dreluop.capped_relu(buffer[:3], buffer[3:], inplace=True)
    assert buffer.tolist() == [0, 0.5, 1, 1]


def test_interleaved_strides_without_overlap_are_legal() -> None:
    # (3, 2) strides of (3, 2): 0 2 3 5 6 8.
    x = torch.full((9,), 2.0).as_strided((3, 2), (3, 2))
    dreluop.capped_relu(x, 1.0, inplace=True)
    assert x._base is not None
    assert x._base.tolist() == [1, 2, 1, 1, 2, 1, 1, 2, 1]


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_empty(dtype: torch.dtype) -> None:
    x = torch.empty(0, 3, dtype=dtype)
    assert dreluop.capped_relu(x, torch.ones(3), inplace=True) is x


@pytest.mark.parametrize("make", [lambda t: t.chunk(2)[0], lambda t: t.unbind()[0]], ids=["chunk", "unbind"])
def test_a_view_that_autograd_refuses_is_left_as_it_was(make: Callable[[Tensor], Tensor]) -> None:
    whole = torch.tensor([[-1.0, 5.0], [-3.0, 7.0]], requires_grad=True) * 1
    before = whole.detach().clone()
    with pytest.raises(ValueError, match="inplace: x is a view that autograd does not let be written over"):
        dreluop.capped_relu(make(whole), 2.0, inplace=True)
    assert torch.equal(whole.detach(), before)


@pytest.mark.parametrize("shape", [(6,), (2, 3)], ids=str)
def test_a_cap_in_the_same_memory_through_another_storage_is_refused(shape: tuple[int, ...]) -> None:
    array = numpy.ones(shape, dtype=numpy.float32)
    cap = torch.from_numpy(array.reshape(-1)[: shape[1] if len(shape) > 1 else 1])
    with pytest.raises(ValueError, match="cap lies in the memory of x"):
        dreluop.capped_relu(torch.from_numpy(array), cap, dim=-1, inplace=True)


def test_a_cap_made_in_inference_mode_is_refused_before_x_is_written() -> None:
    with torch.inference_mode():
        cap = torch.ones(3)
    x = torch.full((2, 3), 5.0, requires_grad=True) * 1
    with pytest.raises(ValueError, match="inplace: cap was made in inference mode and cannot be saved for backward"):
        dreluop.capped_relu(x, cap, inplace=True)
    assert x.detach().eq(5).all() and x._version == 0
    with torch.no_grad():
        assert dreluop.capped_relu(x, cap, inplace=True).eq(1).all()


def test_fake_tensors_have_no_memory_to_share() -> None:
    with FakeTensorMode():
        y = torch.nn.Sequential(torch.nn.Linear(3, 3), dreluop.DReLU(3, inplace=True))(torch.empty(4, 3))
    assert y.shape == (4, 3)


def test_a_copy_on_write_baseline_keeps_its_values() -> None:
    values = torch.randn(4, 3)
    baseline = torch._lazy_clone(values)
    before = values.clone()
    torch.ops.dreluop.capped_relu_(baseline, torch.full((3,), 0.1))
    oracle.assert_same_bits(values, before)
    oracle.assert_same_bits(baseline, oracle.forward(before, torch.full((3,), 0.1)))
