"""torch.func: every transform against plain PyTorch, vmap over x, the cap and both, per-sample gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import dreluop
from tests.autograd.test_derivatives import Granularity
from tests.support import oracle

GRANULARITIES = (
    Granularity("layer", (3, 5), ()),
    Granularity("layer_1", (3, 5), (1,)),
    Granularity("channel", (2, 3, 2, 2), (3,)),
    Granularity("channel_0", (3, 4), (3,), dim=0),
    Granularity("last_channel", (2, 3, 4), (4,), dim=-1),
    Granularity("neuron", (3, 2, 3), (2, 3)),
)
by_granularity = pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
by_balancer = pytest.mark.parametrize("balancer", [None, 0.7], ids=["", "balancer"])

Function = Callable[[Tensor, Tensor], Any]


def ours(granularity: Granularity, balancer: float | None = None, save: str = "output") -> Function:
    return lambda x, cap: dreluop.capped_relu(x, cap, dim=granularity.dim, balancer=balancer, save=save)


def plain(granularity: Granularity, balancer: float | None = None) -> Function:
    return lambda x, cap: oracle.plain(x, cap, granularity.dim, balancer)


def inputs(granularity: Granularity, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    x, cap = granularity.inputs(device)
    return x.detach(), cap.detach()


def close(got: Any, want: Any) -> None:
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def scalar(function: Function) -> Function:
    """A scalar that is curved in everything the function returns."""

    def value(x: Tensor, cap: Tensor) -> Tensor:
        result = function(x, cap)
        parts = result if isinstance(result, tuple) else (result,)
        return sum((part**3).sum() for part in parts) * (1 + cap.sum())

    return value


BOTH = (0, 1)
TRANSFORMS: dict[str, Callable[[Function, Tensor, Tensor], Any]] = {
    "grad": lambda f, x, cap: grad(scalar(f), BOTH)(x, cap),
    "grad_of_x": lambda f, x, cap: grad(scalar(f), 0)(x, cap),
    "grad_of_cap": lambda f, x, cap: grad(scalar(f), 1)(x, cap),
    "vjp": lambda f, x, cap: vjp(scalar(f), x, cap)[1](x.new_tensor(2.0)),
    "jvp": lambda f, x, cap: jvp(f, (x, cap), (x.cos(), cap.sin())),
    "jvp_of_x": lambda f, x, cap: jvp(lambda x: f(x, cap), (x,), (x.cos(),)),
    "jvp_of_cap": lambda f, x, cap: jvp(lambda cap: f(x, cap), (cap,), (cap.sin(),)),
    "jacrev": lambda f, x, cap: jacrev(f, BOTH)(x, cap),
    "jacfwd": lambda f, x, cap: jacfwd(f, BOTH)(x, cap),
    "hessian": lambda f, x, cap: hessian(scalar(f), BOTH)(x, cap),
    "grad_of_grad": lambda f, x, cap: grad(lambda x, c: (grad(scalar(f), 0)(x, c) ** 2).sum(), BOTH)(x, cap),
    "jvp_of_grad": lambda f, x, cap: jvp(grad(scalar(f), BOTH), (x, cap), (x.cos(), cap.sin())),
    "grad_of_jvp": lambda f, x, cap: grad(
        lambda x, c: jvp(scalar(f), (x, c), (x.cos(), c.sin()))[1].sum(), BOTH
    )(x, cap),
    "jacrev_of_jacrev": lambda f, x, cap: jacrev(jacrev(scalar(f), BOTH), BOTH)(x, cap),
    # Something curved comes first, so that the tangents of the activation have tangents themselves.
    "jacfwd_of_jacfwd_of_curved": lambda f, x, cap: jacfwd(
        jacfwd(lambda x, c: scalar(f)(x * (1 + 0.1 * x * x), c * (1 + 0.1 * c)), BOTH), BOTH
    )(x, cap),
    "jacfwd_of_jacfwd": lambda f, x, cap: jacfwd(jacfwd(scalar(f), BOTH), BOTH)(x, cap),
}  # fmt: skip


@by_balancer
@by_granularity
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transform(device: torch.device, transform: str, granularity: Granularity, balancer: float | None) -> None:
    apply = TRANSFORMS[transform]
    x, cap = inputs(granularity, device)
    close(apply(ours(granularity, balancer), x, cap), apply(plain(granularity, balancer), x, cap))


# jacrev maps over the backward of a mask that was packed outside.
@by_granularity
@pytest.mark.parametrize(
    "transform", ["grad", "vjp", "jvp", "jacrev", "jacfwd", "grad_of_grad", "jvp_of_grad", "grad_of_jvp", "hessian"]
)
def test_transform_of_mask_mode(device: torch.device, transform: str, granularity: Granularity) -> None:
    apply = TRANSFORMS[transform]
    x, cap = inputs(granularity, device)
    close(apply(ours(granularity, 0.7, "mask"), x, cap), apply(plain(granularity, 0.7), x, cap))


MAPPED = {
    "x": (0, None),
    "cap": (None, 0),
    "both": (0, 0),
    "x_last": (-1, None),
    "both_last": (-1, -1),
    "mixed": (1, 0),
}


def batched(
    granularity: Granularity, in_dims: tuple[int | None, int | None], n: int = 4, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    members = [inputs(granularity, device) for _ in range(n)]
    stacks = []
    for index, dim in enumerate(in_dims):
        parts = [member[index] for member in members]
        stacks.append(parts[0] if dim is None else torch.stack(parts, dim))
    return stacks[0], stacks[1]


@by_balancer
@pytest.mark.parametrize("save", ["output", "mask"])
@pytest.mark.parametrize("over", MAPPED)
@by_granularity
def test_vmap(device: torch.device, granularity: Granularity, over: str, save: str, balancer: float | None) -> None:
    x, cap = batched(granularity, MAPPED[over], device=device)
    got = vmap(ours(granularity, balancer, save), MAPPED[over])(x, cap)
    want = vmap(plain(granularity, balancer), MAPPED[over])(x, cap)
    close(got, want)


@by_balancer
@pytest.mark.parametrize("save", ["output", "mask"])
@pytest.mark.parametrize("over", ["x", "cap", "both", "mixed"])
@by_granularity
def test_vmap_of_derivatives(
    device: torch.device, granularity: Granularity, over: str, save: str, balancer: float | None
) -> None:
    x, cap = batched(granularity, MAPPED[over], device=device)
    for name in ("grad", "jvp", "jvp_of_grad", "grad_of_grad"):
        got, want = (
            vmap(lambda x, cap, f=f, name=name: TRANSFORMS[name](f, x, cap), MAPPED[over])(x, cap)
            for f in (ours(granularity, balancer, save), plain(granularity, balancer))
        )
        close(got, want)


@by_balancer
@pytest.mark.parametrize("over", ["x", "cap", "both"])
@by_granularity
def test_derivatives_of_vmap(granularity: Granularity, over: str, balancer: float | None) -> None:
    x, cap = batched(granularity, MAPPED[over])
    for name in ("grad", "jvp", "hessian"):
        got, want = (
            TRANSFORMS[name](vmap(f, MAPPED[over]), x, cap)
            for f in (ours(granularity, balancer), plain(granularity, balancer))
        )
        close(got, want)


@by_granularity
def test_vmap_in_vmap(granularity: Granularity) -> None:
    members = [batched(granularity, (0, 0), 3) for _ in range(2)]
    x, cap = (torch.stack(parts) for parts in zip(*members, strict=True))
    for in_dims in ((0, 0), (0, None), (None, 0)):
        args = (x if in_dims[0] is not None else x[0], cap if in_dims[1] is not None else cap[0])
        for f in (lambda g: g, lambda g: grad(scalar(g), BOTH)):
            got, want = (vmap(vmap(f(g)), in_dims)(*args) for g in (ours(granularity), plain(granularity)))
            close(got, want)


@pytest.mark.parametrize("batch", [0, 1])
@by_granularity
def test_vmap_of_few(granularity: Granularity, batch: int) -> None:
    x, cap = (t[:batch] for t in batched(granularity, (0, 0)))
    got = vmap(ours(granularity))(x, cap)
    assert got.shape == x.shape
    if batch:
        close(got, vmap(plain(granularity))(x, cap))


def test_cap_penalty(device: torch.device) -> None:
    a, b = (torch.randn(shape, dtype=torch.float64).to(device) for shape in ((5, 3), (2, 2)))

    def penalty(a: Tensor, b: Tensor) -> Tensor:
        return dreluop.cap_penalty([a, b], 0.7)

    def by_hand(a: Tensor, b: Tensor) -> Tensor:
        return 0.7 * (a.square().sum() + b.square().sum())

    for transform in (
        lambda f: f,
        lambda f: grad(f, BOTH),
        lambda f: jacfwd(f, BOTH),
        lambda f: hessian(f, BOTH),
        lambda f: jacfwd(jacfwd(f, BOTH), BOTH),
        lambda f: jacrev(jacrev(f, BOTH), BOTH),
    ):
        close(transform(penalty)(a[0], b), transform(by_hand)(a[0], b))
        close(vmap(transform(penalty), (0, None))(a, b), vmap(transform(by_hand), (0, None))(a, b))


def test_in_place_under_vmap() -> None:
    x, cap = torch.randn(3, 4), torch.rand(3)
    vmap(lambda x, cap: dreluop.capped_relu(x, cap, inplace=True, save="mask"))(written := x.clone(), cap)
    oracle.assert_same_bits(written, oracle.forward(x, cap, 0))


IN_PLACE_OF_ALL: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "cap": lambda x, c: dreluop.capped_relu(x, c, inplace=True),
    "mask": lambda x, c: dreluop.capped_relu(x, c, inplace=True, save="mask", balancer=0.5),
    "bias": lambda x, c: dreluop.capped_relu(x, 1.0, inplace=True, bias=c),
    "residual": lambda x, c: dreluop.capped_relu(x, 1.0, inplace=True, residual=x * c),
    "inside_grad": lambda x, c: grad(lambda c: dreluop.capped_relu(x.clone(), c, inplace=True).sum())(c),
    "module": lambda x, c: dreluop.SReLU(1.0, inplace=True)(x, x * c),
    "capped_relu_": torch.ops.dreluop.capped_relu_,
    "capped_relu_with_aux_": lambda x, c: torch.ops.dreluop.capped_relu_with_aux_(x, c, 1, True, 0.5),
}


@pytest.mark.parametrize("name", IN_PLACE_OF_ALL)
def test_vmap_in_place_over_one_x_for_the_whole_batch_is_refused(name: str) -> None:
    x, caps = torch.randn(3, 4), torch.rand(2, 4)
    before = x.clone()
    with pytest.raises(ValueError, match=r"inplace: x has no dimension for the batch of torch\.vmap, which the cap"):
        vmap(lambda cap: IN_PLACE_OF_ALL[name](x, cap))(caps)
    assert torch.equal(x, before)


@pytest.mark.parametrize("num_parameters", [1, 6, (6,)], ids=["layer", "channel", "shape"])
def test_per_sample_gradients_of_a_model(device: torch.device, num_parameters: int | tuple[int, ...]) -> None:
    model = torch.nn.Sequential(
        torch.nn.Linear(5, 6), dreluop.DReLU(num_parameters, init=0.4), torch.nn.Linear(6, 2)
    ).to(device).double()  # fmt: skip
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    data = torch.randn(7, 5, dtype=torch.float64).to(device)

    def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(model, parameters, (sample.unsqueeze(0),)).square().sum()

    together = vmap(grad(loss), (None, 0))(parameters, data)
    for i, sample in enumerate(data):
        close({name: g[i] for name, g in together.items()}, grad(loss)(parameters, sample))
    assert together["1.cap"].any()


def test_batched_gradients_of_autograd(device: torch.device) -> None:
    granularity = GRANULARITIES[2]
    x, cap = (t.requires_grad_() for t in inputs(granularity, device))
    cotangents = torch.randn(5, *x.shape, dtype=x.dtype, device=device)
    got, want = (
        torch.autograd.grad(f(granularity)(x, cap), (x, cap), cotangents, is_grads_batched=True)
        for f in (ours, plain)
    )  # fmt: skip
    close(got, want)
