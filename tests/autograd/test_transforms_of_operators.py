"""torch.func around operators that are called directly, as compiled and exported programs do: every order and level."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor, vmap
from torch._dynamo.backends.common import aot_autograd
from torch.autograd import forward_ad
from torch.func import functionalize, grad, hessian, jacfwd, jacrev, jvp, linearize, vjp
from torch.utils._pytree import tree_leaves

import dreluop
from dreluop.ops import decompose, schemas
from tests.autograd.test_derivatives import TIES, Granularity
from tests.support import oracle

ops = torch.ops.dreluop
Function = Callable[..., Any]
BOTH = (0, 1)
CHANNEL = Granularity("channel", (2, 3, 2), (3,))
GRANULARITIES = (
    CHANNEL,
    Granularity("layer", (3, 5), ()),
    Granularity("neuron", (3, 2, 3), (2, 3)),
    Granularity("last_channel", (2, 3, 4), (4,), dim=-1),
)
by_granularity = pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)


def inputs(granularity: Granularity) -> tuple[Tensor, Tensor]:
    x, cap = granularity.inputs()
    return x.detach(), cap.detach()


def bias_of(x: Tensor, granularity: Granularity) -> Tensor:
    shape = granularity.cap_shape if len(granularity.cap_shape) > 1 else (x.shape[granularity.dim],)
    return torch.linspace(-0.2, 0.3, math.prod(shape), dtype=x.dtype).reshape(shape)


def one(result: Any) -> Tensor:
    """y, made to depend on the penalty where there is one."""
    return result if isinstance(result, Tensor) else result[0] * (1 + result[-1])


def want(granularity: Granularity, *, extras: bool = False) -> Function:
    dim = granularity.dim

    def function(x: Tensor, cap: Tensor) -> Tensor:
        if not extras:
            return one(oracle.plain(x, cap, dim))
        return one(oracle.plain(oracle.fused_sum(x, bias_of(x, granularity), x.sin(), dim), cap, dim, 0.7))

    return function


def operator(granularity: Granularity, which: str) -> Function:
    return lambda x, cap: getattr(ops.capped_relu, which)(x, cap, granularity.dim)


def operator_in_place(granularity: Granularity, which: str) -> Function:
    def function(x: Tensor, cap: Tensor) -> Tensor:
        y = x * 1
        getattr(ops.capped_relu_, which)(y, cap, granularity.dim)
        return y

    return function


def operator_with_extras(granularity: Granularity, which: str) -> Function:
    def function(x: Tensor, cap: Tensor) -> Tensor:
        more = (bias_of(x, granularity), x.sin())
        return one(getattr(ops.capped_relu_with_aux, which)(x, cap, granularity.dim, True, 0.7, *more))

    return function


def operator_with_extras_in_place(granularity: Granularity, which: str) -> Function:
    def function(x: Tensor, cap: Tensor) -> Tensor:
        y, more = x * 1, (bias_of(x, granularity), x.sin())
        _, penalty = getattr(ops.capped_relu_with_aux_, which)(y, cap, granularity.dim, True, 0.7, *more)
        return one((y, penalty))

    return function


def public(granularity: Granularity, **keywords: Any) -> Function:
    return lambda x, cap: dreluop.capped_relu(x, cap, dim=granularity.dim, **keywords)


def everything(granularity: Granularity) -> Function:
    def function(x: Tensor, cap: Tensor) -> Tensor:
        more = {"bias": bias_of(x, granularity), "residual": x.sin()}
        return one(
            dreluop.capped_relu(x * 1, cap, dim=granularity.dim, inplace=True, save="mask", balancer=0.7, **more)
        )

    return function


def exported(granularity: Granularity) -> Function:
    class Model(torch.nn.Module):
        def forward(self, x: Tensor, cap: Tensor) -> Any:
            return everything(granularity)(x, cap)

    return torch.export.export(Model(), inputs(granularity)).module()


# What calls an operator, and whether bias, residual and penalty are in it.
ROUTES: dict[str, tuple[Callable[[Granularity], Function], bool]] = {
    "forward": (lambda g: operator(g, "default"), False),
    "forward_": (lambda g: operator_in_place(g, "default"), False),
    "capped_relu_with_aux": (lambda g: operator_with_extras(g, "default"), True),
    "capped_relu_with_aux_": (lambda g: operator_with_extras_in_place(g, "default"), True),
    "reference": (lambda g: operator_with_extras(g, "reference"), True),
    "fused": (lambda g: operator(g, schemas.FUSED), False),
    "fused_": (lambda g: operator_in_place(g, schemas.FUSED), False),
    "exported": (exported, True),
    "in place": (lambda g: lambda x, cap: public(g, inplace=True)(x * 1, cap), False),
    "everything": (everything, True),
}


def scalar(function: Function) -> Function:
    """Curved before and behind the activation, so that no second derivative is zero by chance."""
    return lambda x, cap: (function(x * (1 + 0.1 * x * x), cap * (1 + 0.1 * cap)) ** 3).sum() * (1 + cap.sum())


def square(results: Any) -> Tensor:
    return sum((t**2).sum() for t in tree_leaves(results))


def pushed(function: Function) -> Function:
    return lambda x, cap: jvp(scalar(function), (x, cap), (x.cos(), cap.sin()))[1]


def stacked(x: Tensor) -> Tensor:
    return torch.stack([x, x + 0.1])


COMPOSITIONS: dict[str, Callable[[Function], Function]] = {
    "grad_grad": lambda f: grad(lambda x, c: square(grad(scalar(f))(x, c)), BOTH),
    "grad_grad_grad": lambda f: grad(lambda x, c: square(grad(lambda x, c: square(grad(scalar(f), 1)(x, c)))(x, c)), 1),
    "hessian": lambda f: hessian(scalar(f), BOTH),
    "jacrev_jacrev": lambda f: jacrev(jacrev(scalar(f), BOTH), BOTH),
    "jacfwd_jacrev": lambda f: jacfwd(jacrev(f)),
    "jacfwd_jacfwd": lambda f: jacfwd(jacfwd(scalar(f), BOTH), BOTH),
    "jvp_grad": lambda f: lambda x, c: jvp(grad(scalar(f), BOTH), (x, c), (x.cos(), c.sin())),
    "grad_jvp": lambda f: grad(pushed(f), BOTH),
    "jvp_jvp": lambda f: lambda x, c: jvp(pushed(f), (x, c), (x.sin(), c.cos())),
    "vjp_vjp": lambda f: lambda x, c: vjp(lambda x, c: vjp(scalar(f), x, c)[1](x.new_ones(())), x, c)[1]((x, c)),
    "vmap": lambda f: lambda x, c: vmap(f, (0, None))(stacked(x), c),
    "vmap_grad_grad": lambda f: lambda x, c: vmap(COMPOSITIONS["grad_grad"](f))(stacked(x), stacked(c)),
    "vmap_hessian": lambda f: lambda x, c: vmap(hessian(scalar(f)), (0, None))(stacked(x), c),
    "grad_vmap": lambda f: grad(lambda x, c: square(vmap(f, (0, None))(stacked(x), c)), BOTH),
    "linearize": lambda f: lambda x, c: linearize(scalar(f), x, c)[1](x.cos(), c.sin()),
    "functionalize": functionalize,
    "functionalize_grad": lambda f: functionalize(grad(scalar(f), BOTH)),
    "grad_functionalize": lambda f: grad(lambda x, c: square(functionalize(grad(scalar(f)))(x, c)), BOTH),
    "functionalize_vmap_grad": lambda f: (
        lambda x, c: functionalize(vmap(grad(scalar(f), BOTH), (0, None)))(stacked(x), c)
    ),
}


def close(got: Any, expected: Any) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


# In an exported program the write is a copy, and torch has no derivative of what functionalize makes of a copy.
SKIPPED = {("exported", "grad_functionalize")}
# It traces, which takes ten times as long as the others.
SKIPPED |= {(route, "linearize") for route in ROUTES if route not in ("forward", "in place")}
TRIED = [(route, name) for route in ROUTES for name in COMPOSITIONS if (route, name) not in SKIPPED]


@pytest.mark.parametrize(("route", "composition"), TRIED)
def test_composition(route: str, composition: str) -> None:
    make, extras = ROUTES[route]
    apply = COMPOSITIONS[composition]
    x, cap = inputs(CHANNEL)
    with warnings.catch_warnings():
        # vmap without a rule warns that it is slow.
        warnings.filterwarnings("error", "There is a performance drop")
        got = apply(make(CHANNEL))(x, cap)
    close(got, apply(want(CHANNEL, extras=extras))(x, cap))


@by_granularity
@pytest.mark.parametrize("route", ["capped_relu_with_aux", "fused", "in place"])
def test_granularity(route: str, granularity: Granularity) -> None:
    make, extras = ROUTES[route]
    x, cap = inputs(granularity)
    for name in ("grad_grad", "jvp_grad", "jvp_jvp", "vmap_grad_grad", "functionalize_vmap_grad"):
        apply = COMPOSITIONS[name]
        close(apply(make(granularity))(x, cap), apply(want(granularity, extras=extras))(x, cap))


def test_the_numbers_of_the_report() -> None:
    x, cap = torch.tensor([[0.25, 0.5, 2.0, -1.0]]), torch.ones(4)
    for activation in (ops.capped_relu, torch.compile(dreluop.capped_relu, backend="eager", fullgraph=True)):

        def twice(a: Tensor, f: Function = activation) -> Tensor:
            return grad(lambda q: grad(lambda s: (f(s, cap) ** 2).sum())(q).sum())(a)

        assert twice(x).tolist() == [[2, 2, 0, 0]]


RULES: dict[str, Function] = {
    "operator": ops.capped_relu,
    "mask": lambda x, cap: ops.capped_relu_with_aux(x, cap, 1, True, None)[0],
    "fused": getattr(ops.capped_relu, schemas.FUSED),
    "functionalize": functionalize(dreluop.capped_relu),
    "decomposition": decompose.capped_relu,
}


@pytest.mark.parametrize("rule", RULES)
def test_rule_at_ties_and_special_values(rule: str) -> None:
    function = RULES[rule]
    for name, *numbers, g, dx, dcap in TIES:
        x, cap = (torch.tensor([value]) for value in numbers)
        y, pull = vjp(function, x, cap)
        oracle.assert_same_bits(y, oracle.forward(x, cap))
        assert [t.item() for t in pull(torch.tensor([g]))] == [dx, dcap], name
        tangent = jvp(function, (x, cap), (torch.tensor([5.0]), torch.tensor([7.0])))[1]
        regions = 5 * (dx != 0) + 7 * (dcap != 0)
        assert tangent.item() == regions, name
        if math.isfinite(g):
            second = grad(lambda g, pull=pull: (torch.stack(pull(g)) * torch.tensor([[5.0], [7.0]])).sum())
            assert second(torch.tensor([g])).item() == regions, name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("rule", ["operator", "fused", "functionalize"])
def test_half_types_round_once_and_sum_in_a_wide_type(rule: str, dtype: torch.dtype) -> None:
    x, cap, grads = torch.randn(64, 33).to(dtype), torch.rand(33) + 0.3, torch.randn(64, 33).to(dtype)
    y, pull = vjp(RULES[rule], x, cap)
    oracle.assert_same_bits(y, oracle.forward(x, cap))
    dx, dcap = pull(grads)
    oracle.assert_same_bits(dx, oracle.grad_x(grads, x, cap))
    oracle.assert_grad_cap(dcap, grads, x, cap)


def one_by_one(function: Function, *batches: Tensor) -> Any:
    results = [function(*members) for members in zip(*batches, strict=True)]
    if isinstance(results[0], Tensor):
        return torch.stack(results)
    return tuple(torch.stack(parts) for parts in zip(*results, strict=True))


def test_every_other_operator_under_vmap() -> None:
    xs, grads, caps = (torch.randn(4, 5, 3, dtype=torch.float64) for _ in range(3))
    caps = caps[:, 0].abs() + 0.2
    y, mask, _ = ops.capped_relu_with_aux(xs[0], caps[0], 1, True, None)

    def packed_inside(x: Tensor, cap: Tensor, grad: Tensor) -> Any:
        mask = ops.capped_relu_with_aux(x, cap, 1, True, None)[1]
        return ops.capped_relu_backward(grad, mask, cap, 1, [0, 1], True, True, 0.5, cap.new_ones(()), cap)

    for function, batches in (
        (lambda x, cap: ops.capped_relu_with_aux(x, cap, 1, True, 0.5), (xs, caps)),
        (packed_inside, (xs, caps, grads)),
        (lambda g: ops.capped_relu_backward(g, mask, caps[0], 1, [0, 1], True, True, None, None)[:2], (grads,)),
        (lambda g: ops.capped_relu_backward(g, y, caps[0], 1, [], True, True, None, None)[:2], (grads,)),
        (lambda u, v: ops.capped_relu_jvp(u, v, mask, caps[0], 1, [0, 1]), (grads, caps)),
        (lambda g, x, cap: ops.capped_relu_surrogate_backward(g, x, cap, 1, [], cap), (grads, xs, caps)),
        (lambda x, cap: ops.cap_saturation(x, cap, 1), (xs, caps)),
        (lambda cap: ops.cap_penalty([cap, cap * 2], 0.5), (caps,)),
        (lambda cap: tuple(ops.cap_penalty_backward(cap.new_ones(()), [cap], 0.5)), (caps,)),
    ):
        close(vmap(function)(*batches), one_by_one(function, *batches))


@pytest.mark.parametrize("transform", [vmap, grad, functionalize], ids=lambda transform: transform.__name__)
def test_bad_arguments_are_named(transform: Callable[[Function], Function]) -> None:
    x, cap = torch.randn(2, 4, 3), torch.ones(3)
    for function, words in (
        (lambda x: ops.capped_relu(x, torch.ones(7)).sum(), "cap: got shape"),
        (lambda x: ops.capped_relu(x, cap, -1, torch.ones(5)).sum(), "bias: got shape"),
        (lambda x: ops.capped_relu_with_aux(x, cap, -1, True, None, None, x[..., :2])[0].sum(), "residual: got shape"),
        (lambda x: ops.capped_relu_((x * 1)[..., :1].expand(*x.shape), cap, -1), "inplace: x of shape"),
    ):
        with pytest.raises(ValueError, match=words):
            transform(function)(x)


def test_a_surrogate_is_refused_under_vmap_too() -> None:
    x = torch.randn(4, 3, requires_grad=True)
    with dreluop.adaptive.surrogate_backward(), pytest.raises(RuntimeError, match=r"does not reach torch.ops.dreluop"):
        vmap(lambda row: ops.capped_relu(row, torch.ones(())))(x)


def compiled(function: Function, form: str, **options: Any) -> Function:
    call = torch.compile(function, fullgraph=True, **options)

    def run(*arguments: Tensor) -> Any:
        with dreluop.compile_mode(form):  # type: ignore[arg-type]
            return call(*arguments)

    return run


# jacfwd and a jvp in a jvp are an error in a whole graph, of plain torch too.
COMPILABLE = ("grad_grad", "grad_jvp", "vmap_grad_grad")


@pytest.mark.parametrize(("route", "form"), [("output", "opaque"), ("everything", "decompose")])
@pytest.mark.usefixtures("fresh_compiler")
def test_inside_what_is_compiled(route: str, form: str) -> None:
    ours = everything(CHANNEL) if route == "everything" else public(CHANNEL)
    plainly = want(CHANNEL, extras=route == "everything")
    x, cap = (t.requires_grad_() for t in inputs(CHANNEL))

    def every(f: Function) -> Function:
        return lambda x, c: [COMPOSITIONS[name](f)(x, c) for name in COMPILABLE]

    got = compiled(every(ours), form, backend="aot_eager")(x, cap)
    expected = every(plainly)(x, cap)
    close(got, expected)
    # A gradient penalty: what is compiled is differentiated once more from outside.
    close(*(torch.autograd.grad(square(results), (x, cap)) for results in (got, expected)))


@pytest.mark.usefixtures("fresh_compiler")
def test_by_inductor() -> None:
    x, cap = inputs(CHANNEL)
    apply = COMPOSITIONS["jvp_grad"]
    close(compiled(apply(public(CHANNEL)), "auto")(x, cap), apply(want(CHANNEL))(x, cap))


@pytest.mark.parametrize("form", ["decompose", "opaque"])
@pytest.mark.parametrize("save", ["output", "mask"])
@pytest.mark.usefixtures("fresh_compiler")
def test_vmap_is_not_unrolled(form: str, save: str) -> None:
    sizes: list[int] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        sizes.append(len(graph.graph.nodes))
        return make_boxed_func(graph.forward)

    function = vmap(lambda x, cap: dreluop.capped_relu(x, cap, dim=0, save=save), (0, None))
    compiled(function, form, backend=aot_autograd(fw_compiler=keep))(torch.randn(64, 3), torch.ones(3))
    assert sizes[0] < 64


@pytest.mark.parametrize("form", ["decompose", "opaque"])
@pytest.mark.usefixtures("fresh_compiler")
def test_a_level_of_forward_mode_inside_what_is_compiled(form: str) -> None:
    x, tangent, cap = torch.randn(4, 3), torch.randn(4, 3), torch.ones(3)

    def pushed_forward(x: Tensor, tangent: Tensor, cap: Tensor) -> Tensor | None:
        with forward_ad.dual_level():
            y = dreluop.capped_relu(forward_ad.make_dual(x, tangent), cap)
            return forward_ad.unpack_dual(y).tangent

    got = compiled(pushed_forward, form, backend="aot_eager")(x, tangent, cap)
    oracle.assert_same_bits(got, oracle.tangent(tangent, None, x, cap))


@by_granularity
@pytest.mark.parametrize("balancer", [None, 0.7])
def test_the_mask_and_the_penalty_in_place_are_the_same_under_forward_mode(
    granularity: Granularity, balancer: float | None
) -> None:
    x, cap = inputs(granularity)
    want = ops.capped_relu_with_aux(x, cap, granularity.dim, True, balancer)[1:]
    with forward_ad.dual_level():
        for given in (x.clone(), forward_ad.make_dual(x.clone(), torch.ones_like(x))):
            got = ops.capped_relu_with_aux_(given, cap, granularity.dim, True, balancer)
            assert want[0].numel() > 0
            for one_got, one_want in zip(got, want, strict=True):
                assert torch.equal(one_got, one_want)
