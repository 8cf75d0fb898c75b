"""Memory is freed without the cyclic garbage collector, also where a hook on saved tensors raises an exception.

Activation checkpointing ends its second forward pass by such an exception (unless it is reentrant).
"""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import dreluop
from dreluop import adaptive
from dreluop.autograd import fast_path
from tests.support.backends import fast_path_or_skip

Region = Callable[[Tensor], Any]

SHAPE = (4, 3)


def left_to_the_collector(run: Callable[[], Any]) -> list[object]:
    """The tensors and autograd nodes that only the cyclic garbage collector frees after ``run``."""
    gc.disable()
    # What is there already is not looked at, which saves most of the time.
    gc.freeze()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        run()
        gc.collect()
        return [o for o in gc.garbage if issubclass(type(o), Tensor | torch.autograd.function.BackwardCFunction)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.unfreeze()
        gc.enable()


def total(result: Any) -> Tensor:
    return sum(one.sum() for one in result) if isinstance(result, tuple) else result.sum()


def checkpointed(region: Region, **options: Any) -> None:
    x = torch.randn(SHAPE, requires_grad=True)
    total(checkpoint(region, x, use_reentrant=False, **options)).backward()
    assert x.grad is not None and bool(x.grad.any())


def beside(x: Tensor, **given: Any) -> Callable[[], Any]:
    return lambda: dreluop.capped_relu(x, torch.ones(()), inplace=True, **given)


WHOLE = torch.rand(6, 8)
IN_PLACE: dict[str, Callable[[], Any]] = {
    "bias": beside(torch.randn(8, 4), bias=torch.zeros(4)),
    "between_the_elements_of_x": beside(WHOLE[:, ::2], residual=WHOLE[:, 1::2]),
    "between_the_rows_of_x": beside(WHOLE[:, :4], residual=WHOLE[:, 4:]),
}


@pytest.mark.slow
@pytest.mark.parametrize("call", IN_PLACE)
def test_the_look_for_shared_memory_leaves_no_cycle_of_any_object(call: str) -> None:
    IN_PLACE[call]()
    while gc.collect() > 0:  # What other tests left may take several passes.
        pass
    gc.disable()
    try:
        for _ in range(100):
            IN_PLACE[call]()
        # Another thread may have left some.
        assert gc.collect() < 100
    finally:
        gc.enable()


FORMS = {
    "-".join(map(str, filter(None, (save, balancer, *added, inplace and "inplace")))): (save, balancer, added, inplace)
    for save, balancer, added, inplace in itertools.product(
        ("output", "mask"), (None, 0.5), ((), ("bias",), ("residual",), ("bias", "residual")), (False, True)
    )
}
by_form = pytest.mark.parametrize("form", FORMS)


def region_of(form: str) -> Region:
    save, balancer, added, inplace = FORMS[form]
    cap, bias = torch.rand(3).add_(0.5).requires_grad_(), torch.zeros(3, requires_grad=True)

    def region(x: Tensor) -> Any:
        bias_and_residual = {"bias": bias, "residual": x * 3}
        return dreluop.capped_relu(
            x * 2,
            cap,
            save=save,
            balancer=balancer,
            inplace=inplace,
            **{name: bias_and_residual[name] for name in added},
        )

    return region


def require_native(how: str) -> Any:
    if how == "fast_path":
        fast_path_or_skip()
        return dreluop.use_backend(None)
    return {
        "python_node": fast_path.switched_off,
        "reference": lambda: dreluop.use_backend("reference"),
        "straight_through": adaptive.surrogate_backward,
        "soft": lambda: adaptive.surrogate_backward("soft"),
    }[how]()


@by_form
@pytest.mark.parametrize("how", ["fast_path", "python_node", "reference", "straight_through", "soft"])
def test_checkpointing(form: str, how: str) -> None:
    region = region_of(form)

    def run() -> None:
        with require_native(how):
            checkpointed(region)

    assert left_to_the_collector(run) == []


def operators(x: Tensor) -> Any:
    y, _, penalty = torch.ops.dreluop.capped_relu_with_aux(x * 2, torch.ones(3), 1, True, 0.5)
    return torch.ops.dreluop.capped_relu(y, torch.ones(3)), penalty


def operators_in_place(x: Tensor) -> Any:
    y = x * 2
    torch.ops.dreluop.capped_relu_(y, torch.ones(3))
    torch.ops.dreluop.capped_relu_with_aux_(y, torch.ones(3), 1, True, None)
    return y


def gradient_of_gradient(x: Tensor) -> Any:
    y = dreluop.capped_relu(x * 2, torch.ones(3), save="mask", balancer=0.5)[0]
    return torch.autograd.grad(y.square().sum(), x, create_graph=True)[0]


MODULES = {
    "drelu": lambda: dreluop.DReLU(3, inplace=True, save="mask"),
    "srelu": lambda: dreluop.SReLU(1.0, save="mask"),
}
REGIONS: dict[str, Callable[[], Region]] = {
    "operators": lambda: operators,
    "operators_in_place": lambda: operators_in_place,
    "cap_penalty": lambda: lambda x: dreluop.cap_penalty([x * 2, x], 0.5),
    "gradient_of_gradient": lambda: gradient_of_gradient,
    "nested": lambda: lambda x: checkpoint(region_of("mask-0.5-bias"), x * 2, use_reentrant=False),
    "compiled": lambda: torch.compile(region_of("mask-inplace"), backend="aot_eager"),
    **{name: lambda made=made: nn.Sequential(nn.Linear(3, 3), made(), made()) for name, made in MODULES.items()},
}


@pytest.mark.parametrize("region", REGIONS)
def test_checkpointing_of_other_entry_points(region: str) -> None:
    made = REGIONS[region]()
    checkpointed(made)
    assert left_to_the_collector(lambda: checkpointed(made)) == []


@pytest.mark.parametrize("kept", [(), ("capped_relu", "capped_relu_with_aux")], ids=["nothing", "ours"])
def test_selective_checkpointing(kept: tuple[str, ...]) -> None:
    def policy(_: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        return CheckpointPolicy.MUST_SAVE if operator in saved else CheckpointPolicy.PREFER_RECOMPUTE

    saved = [getattr(torch.ops.dreluop, name).default for name in kept]
    region = region_of("mask-0.5-bias")

    def run() -> None:
        checkpointed(region, context_fn=lambda: create_selective_checkpoint_contexts(policy))

    assert left_to_the_collector(run) == []


@pytest.mark.parametrize("form", ["mask-bias", "mask-0.5-inplace", "output-bias-residual"])
def test_hooks_of_torch_that_move_what_is_saved(form: str) -> None:
    region = region_of(form)

    def run() -> None:
        with save_on_cpu():
            checkpointed(region)

    assert left_to_the_collector(run) == []


@by_form
@pytest.mark.parametrize("how", ["fast_path", "python_node", "straight_through"])
def test_a_hook_that_raises(form: str, how: str) -> None:
    """Nothing keeps what was saved before, and in place x has no gradient, as parts of it would be missing."""
    save, balancer, added, inplace = FORMS[form]
    cap, bias = torch.ones(3, requires_grad=True), torch.zeros(3, requires_grad=True)

    def run(saved_before: int) -> bool:
        packed = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal packed
            packed += 1
            if packed > saved_before:
                raise KeyError("enough")
            return tensor

        x = torch.randn(SHAPE, requires_grad=True)
        given, bias_and_residual = x * 1, {"bias": bias, "residual": x * 3}
        bias_and_residual = {name: bias_and_residual[name] for name in added}
        try:
            with saved_tensors_hooks(pack, lambda t: t):
                dreluop.capped_relu(given, cap, save=save, balancer=balancer, inplace=inplace, **bias_and_residual)
        except KeyError:
            if inplace:
                with pytest.raises(RuntimeError, match=r"a hook on saved tensors raised|already been freed"):
                    given.sum().backward()
            return True
        return False

    with require_native(how):
        raised: list[bool] = []
        for saved_before in range(3 if "bias" in added else 2):
            assert left_to_the_collector(lambda at=saved_before: raised.append(run(at))) == []
    assert all(raised)
