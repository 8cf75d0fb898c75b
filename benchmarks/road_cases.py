"""What ``bench_road`` times in one process, of the dreluop of a checkout: `python -m benchmarks.road_cases CHECKOUT`.

Nothing here may import dreluop before ``measure`` has chosen it.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness.entry import exit_with
from benchmarks.harness.interleave import Budget, Timed, interleave, sample

SHAPES = ((4, 8), (64, 512))
IMAGES = (32, 64, 28, 28)
SMALL, LARGE = Budget(seconds=0.3, max_samples=40), Budget(seconds=1.0, max_samples=9)
by_processor_time = functools.partial(sample, clock=time.thread_time_ns)
LAPS = {"forward": slice(0, 1), "forward+backward": slice(0, 2)}
COMPOSITE = ", composite"
Function = Callable[[Tensor, Tensor], Any]


def small_cases(shape: tuple[int, int]) -> list[Timed]:
    """Forward and backward of small tensors, which wait for Python more than for a kernel."""
    import dreluop  # noqa: PLC0415 (of the checkout that is measured)
    from dreluop import adaptive  # noqa: PLC0415

    x, cap = torch.randn(shape, requires_grad=True), torch.full((shape[1],), 0.5, requires_grad=True)
    bias, residual = torch.randn(shape[1], requires_grad=True), torch.randn(shape, requires_grad=True)
    prelu, drelu = nn.PReLU(shape[1]), dreluop.DReLU(shape[1], init=0.5)
    grad, one = torch.ones(shape), torch.ones(())
    packed: Any = "code" if "code" in str(dreluop.functional.SaveMode) else "mask"
    ours = dreluop.capped_relu

    def backward(result: Any) -> None:
        with_penalty = isinstance(result, tuple)
        torch.autograd.backward(result, (grad, one) if with_penalty else grad)

    def timed(name: str, function: Function, within: Callable[[], AbstractContextManager[Any]] = nullcontext) -> Timed:
        entered = ExitStack()
        steps = (lambda _: function(x, cap), backward, lambda _: entered.close())
        return Timed(f"{name} {shape[0]} x {shape[1]}", steps, lambda: entered.enter_context(within()))

    found = [
        timed("relu", lambda x, cap: torch.relu(x)),
        timed("prelu", lambda x, cap: prelu(x)),
        timed("DReLU", lambda x, cap: drelu(x)),
        timed("fast path", ours),
        timed("fast path in Python", ours, without_fast_path),
        timed("bias", lambda x, cap: ours(x, cap, bias=bias)),
        timed("residual", lambda x, cap: ours(x, cap, residual=residual)),
        timed("bias and residual", lambda x, cap: ours(x, cap, bias=bias, residual=residual)),
        timed("balancer", lambda x, cap: ours(x, cap, balancer=0.1)),
        timed("mask", lambda x, cap: ours(x, cap, save=packed)),
        timed("in place", lambda x, cap: ours(x * 1, cap, inplace=True)),
        timed("view in place", lambda x, cap: ours((x * 1)[:], cap, inplace=True)),
        timed("x * 1", lambda x, cap: x * 1),
        timed("straight through", ours, adaptive.surrogate_backward),
        timed("soft", ours, lambda: adaptive.surrogate_backward("soft", std=1.0)),
    ]
    # Another checkout may have neither the module nor the class.
    fast_path = sys.modules.get("dreluop.autograd.fast_path")
    if fast_path is not None and hasattr(fast_path, "PlainActivation"):
        from dreluop.autograd.function import KernelActivation  # noqa: PLC0415
        from dreluop.ops.call import Call  # noqa: PLC0415

        plain = fast_path.PlainActivation
        found += [
            timed("PlainActivation", lambda x, cap: super(torch.autograd.Function, plain).apply(x, cap, 1, False)),
            timed("KernelActivation", lambda x, cap: KernelActivation.run(Call(x, cap)).y),
        ]
    return found


@contextmanager
def without_fast_path() -> Iterator[None]:
    """As with a torch for which the C++ is not built; without the lock of ``switched_off``."""
    # The second is the name before commit 7700871.
    fast_path: Any = sys.modules.get("dreluop.autograd.fast_path") or sys.modules["dreluop.compiled_node"]
    compiled, fast_path.capped_relu = fast_path.capped_relu, None
    try:
        yield
    finally:
        fast_path.capped_relu = compiled


def derivative_cases() -> list[Timed]:
    """What the tangent operator and the fold of vmap are for, and the same by differentiable torch ("composite")."""
    import dreluop  # noqa: PLC0415

    x, cap = torch.randn(IMAGES), torch.full((IMAGES[1],), 0.5)

    def twice(function: Function) -> Any:
        leaves = x.clone().requires_grad_(), cap.clone().requires_grad_()
        first = torch.autograd.grad(function(*leaves).square().sum(), leaves, create_graph=True)
        return torch.autograd.grad(first[0].square().sum() + first[1].square().sum(), leaves)

    def jvp(function: Function) -> Any:
        return torch.func.jvp(function, (x, cap), (x, cap))

    def per_sample(function: Function) -> Any:
        gradient = torch.func.grad(lambda cap, x: function(x[None], cap).square().sum(), argnums=(0, 1))
        return torch.vmap(gradient, in_dims=(None, 0))(cap, x)

    implementations: dict[str, Function] = {"": dreluop.capped_relu}
    if decompose := sys.modules.get("dreluop.ops.decompose"):
        implementations[COMPOSITE] = decompose.capped_relu

    def timed(name: str, run: Callable[[Function], Any], function: Function) -> Timed:
        return Timed(name, (lambda _: run(function),))

    return [
        timed(f"{kind}{suffix}", run, function)
        for kind, run in (("double backward", twice), ("jvp", jvp), ("per-sample gradients", per_sample))
        for suffix, function in implementations.items()
    ]


def measure(checkout: str) -> dict[str, float]:
    """Microseconds by case, of the dreluop in a checkout."""
    sys.path.insert(0, checkout)
    torch.set_num_threads(1)
    found: dict[str, float] = {}
    for shape in SHAPES:
        for name, samples in interleave(small_cases(shape), SMALL, sampler=by_processor_time).items():
            found |= {f"{name} {lap}": samples.steps(which).seconds().median * 1e6 for lap, which in LAPS.items()}
    for name, samples in interleave(derivative_cases(), LARGE, sampler=by_processor_time).items():
        found[name] = samples.seconds().median * 1e6
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    (checkout,) = sys.argv[1:] if arguments is None else arguments
    print(json.dumps(measure(checkout)))
    return 0


if __name__ == "__main__":
    exit_with(main)
