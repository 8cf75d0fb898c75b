"""Every form of a call in every situation: the C++ node gives what Python gives, bit for bit, errors included."""

from __future__ import annotations

import gc
import re
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

import dreluop
from dreluop.autograd import fast_path
from dreluop.backends import native
from tests.support import oracle

pytestmark = pytest.mark.usefixtures("compiled")

FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "mask": {"save": "mask"},
    "balancer": {"balancer": 0.3},
    "bias": {"bias": True},
    "residual": {"residual": True},
    "all": {"save": "mask", "balancer": 0.3, "bias": True, "residual": True},
}
WRITES = ("out_of_place", "inplace", "view")
# x, cap, dim, channels_last and the dtypes of x and of the cap and bias.
INPUTS: dict[str, tuple[tuple[int, ...], tuple[int, ...], int, bool, tuple[torch.dtype, torch.dtype]]] = {
    "channel": ((4, 3), (3,), 1, False, (torch.float32, torch.float32)),
    "layer": ((5, 4, 3), (), -1, False, (torch.float64, torch.float32)),
    "neuron": ((3, 2, 5), (2, 5), 1, False, (torch.float16, torch.float16)),
    "channels_last": ((2, 3, 4, 5), (3,), 1, True, (torch.bfloat16, torch.float32)),
    "empty": ((0, 3), (3,), 1, False, (torch.float32, torch.float32)),
}
by_form = pytest.mark.parametrize("form", FORMS)
by_write = pytest.mark.parametrize("write", WRITES)
by_inputs = pytest.mark.parametrize("given", INPUTS)


class Site(NamedTuple):
    """A call that is still to be made, and the leaves that it uses: x, cap and perhaps bias and residual."""

    leaves: dict[str, Tensor]
    call: Callable[..., Any]

    def results(self, **changed: Any) -> tuple[Tensor, ...]:
        result = self.call(**changed)
        return result if isinstance(result, tuple) else (result,)


def site(form: str, write: str, given: str = "channel") -> Site:
    shape, cap_shape, dim, channels_last, (dtype, cap_dtype) = INPUTS[given]
    torch.manual_seed(0)
    options = dict(FORMS[form])
    x = torch.randn(shape).to(dtype)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    leaves = {"x": x, "cap": torch.rand(cap_shape).to(cap_dtype)}
    if options.pop("bias", False):
        leaves["bias"] = torch.randn(cap_shape if len(cap_shape) > 1 else (shape[dim],)).to(cap_dtype)
    if options.pop("residual", False):
        leaves["residual"] = torch.randn(shape).to(dtype)
    for leaf in leaves.values():
        leaf.requires_grad_()

    def call(**changed: Any) -> Any:
        tensors = {**leaves, **changed}
        written = tensors.pop("x")
        if write != "out_of_place" and "x" not in changed:
            written = written * 1
        if write == "view":
            written = written[:]
        return dreluop.capped_relu(written, dim=dim, inplace=write != "out_of_place", **tensors, **options)

    return Site(leaves, call)


def grads_for(results: tuple[Tensor, ...]) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn_like(result) for result in results]


def gradients(at: Site, results: tuple[Tensor, ...], **options: Any) -> list[Any]:
    return list(torch.autograd.grad(results, list(at.leaves.values()), grads_for(results), **options))


def outcome(run: Callable[[Site], Any], at: Site) -> list[Any]:
    """Tensors and other values, or the error in words that do not name the node."""
    try:
        return list(run(at))
    except Exception as error:
        # In place, a Function counts two versions for a write (docs/packaging.md).
        words = re.sub(r"version \d+", "version", str(error))
        return [type(error), re.sub(r"\w+Backward\d?\b", "Node", words)]


def assert_same(got: list[Any], want: list[Any]) -> None:
    assert len(got) == len(want)
    for one, other in zip(got, want, strict=True):
        if isinstance(other, Tensor):
            oracle.assert_same_bits(one, other)
            assert one.stride() == other.stride()
            assert one.requires_grad == other.requires_grad
        else:
            assert one == other


def both_ways(run: Callable[[Site], Any], *what: str) -> tuple[list[Any], list[Any], int]:
    """What the node gives, what Python gives, and how many calls the node took."""
    taken = 0
    by_node = fast_path.capped_relu
    assert by_node is not None

    def seen(*arguments: Any) -> Any:
        nonlocal taken
        result = by_node(*arguments)
        taken += result is not None
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast_path, "capped_relu", seen)
        got = outcome(run, site(*what))
    with fast_path.switched_off():
        want = outcome(run, site(*what))
    return got, want, taken


def forward_and_backward(at: Site) -> list[Any]:
    results = at.results()
    return [*results, *gradients(at, results)]


@pytest.fixture(params=["kernels", "operators"])
def called(request: pytest.FixtureRequest, compiled: None) -> Iterator[None]:
    """What the node calls: the kernels, as on plain CPU tensors, or the operators by the dispatcher, as elsewhere."""
    from dreluop import _autograd  # noqa: PLC0415 (not there everywhere)

    if request.param == "operators":
        _autograd.set_cpu_kernels(0)
    yield
    assert _autograd.set_cpu_kernels(native.cpu_kernels()) == native.is_loaded()


@pytest.mark.usefixtures("called")
@by_form
@by_write
@by_inputs
def test_values_and_gradients(form: str, write: str, given: str) -> None:
    got, want, taken = both_ways(forward_and_backward, form, write, given)
    assert_same(got, want)
    # Autograd refuses a second result of what writes over a view, so there the penalty is apart.
    assert taken == ("balancer" not in FORMS[form] or write != "view")


def twice(at: Site) -> list[Any]:
    results = at.results()
    first = gradients(at, results, retain_graph=True)
    return [*first, *gradients(at, results)]


def after_it_was_freed(at: Site) -> list[Any]:
    results = at.results()
    gradients(at, results)
    return gradients(at, results)


def second_derivatives(at: Site) -> list[Any]:
    first = gradients(at, at.results(), create_graph=True)
    total = sum((one * one.detach().cos()).double().sum() for one in first)
    leaves = list(at.leaves.values())
    return [*first, *torch.autograd.grad(total, leaves, allow_unused=True)]


def of_y_alone(at: Site) -> list[Any]:
    y = at.results()[0]
    return list(torch.autograd.grad(y, list(at.leaves.values()), grads_for((y,))))


def of_the_penalty_alone(at: Site) -> list[Any]:
    last = at.results()[-1]
    return list(torch.autograd.grad(last.sum(), list(at.leaves.values()), allow_unused=True))


def each_leaf_alone(at: Site) -> list[Any]:
    found: list[Any] = []
    for wanted in at.leaves:
        for name, leaf in at.leaves.items():
            leaf.requires_grad_(name == wanted)
        results = at.results()
        kept = [result for result in results if result.requires_grad]
        found += [*results, *torch.autograd.grad(kept, at.leaves[wanted], grads_for(tuple(kept)))]
    return found


def each_gradient_alone(at: Site) -> list[Any]:
    results = at.results()
    return [torch.autograd.grad(results, leaf, grads_for(results), retain_graph=True)[0] for leaf in at.leaves.values()]


def into_grad(at: Site) -> list[Any]:
    for _ in range(2):
        results = at.results()
        torch.autograd.backward(results, grads_for(results))
    return [leaf.grad for leaf in at.leaves.values()]


def without_grad_mode(at: Site) -> list[Any]:
    with torch.no_grad():
        return list(at.results(x=at.leaves["x"].detach().clone()))


def in_inference_mode(at: Site) -> list[Any]:
    with torch.inference_mode():
        return [one.clone() for one in at.results(x=at.leaves["x"].detach().clone())]


def of_an_inference_tensor(at: Site) -> list[Any]:
    with torch.inference_mode():
        cap = at.leaves["cap"] * 1
    return list(at.results(cap=cap))


def under_autocast(at: Site) -> list[Any]:
    with torch.autocast("cpu", torch.bfloat16):
        return forward_and_backward(at)


def with_hooks(at: Site) -> list[Any]:
    packed: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        packed.append(tensor.detach().clone())
        return tensor.detach().clone()

    with saved_tensors_hooks(pack, lambda t: t):
        results = at.results()
    return [*packed, *gradients(at, results)]


def saved_on_cpu(at: Site) -> list[Any]:
    with save_on_cpu():
        return forward_and_backward(at)


def checkpointed(at: Site) -> list[Any]:
    result = checkpoint(lambda x: at.results(x=x * 1), at.leaves["x"], use_reentrant=False)
    return gradients(at, tuple(result))


def named_in_anomaly_mode(at: Site) -> list[Any]:
    with torch.autograd.detect_anomaly(check_nan=True):
        return forward_and_backward(at)


def after_y_was_changed(at: Site) -> list[Any]:
    results = at.results()
    with torch.no_grad():
        results[0].mul_(2)
    return gradients(at, results)


def after_the_cap_was_changed(at: Site) -> list[Any]:
    results = at.results()
    with torch.no_grad():
        at.leaves["cap"].mul_(2)
    return gradients(at, results)


def of_a_batch_of_gradients(at: Site) -> list[Any]:
    y = at.results()[0]
    grads = torch.stack(grads_for((y, y)))
    return list(torch.autograd.grad(y, list(at.leaves.values()), grads, is_grads_batched=True))


def of_a_strided_gradient(at: Site) -> list[Any]:
    y = at.results()[0]
    grad = torch.randn(*y.shape, 2, generator=torch.Generator().manual_seed(2)).to(y.dtype)[..., 0]
    return list(torch.autograd.grad(y, list(at.leaves.values()), grad))


SITUATIONS = {
    function.__name__: function
    for function in (
        twice, after_it_was_freed, second_derivatives, of_y_alone, of_the_penalty_alone, each_leaf_alone,
        each_gradient_alone, into_grad, without_grad_mode, in_inference_mode, of_an_inference_tensor, under_autocast,
        with_hooks, saved_on_cpu, checkpointed, named_in_anomaly_mode, after_y_was_changed, after_the_cap_was_changed,
        of_a_batch_of_gradients, of_a_strided_gradient,
    )
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.filterwarnings("ignore:There is a performance drop")
@by_form
@by_write
@pytest.mark.parametrize("situation", SITUATIONS)
def test_situations(form: str, write: str, situation: str) -> None:
    got, want, taken = both_ways(SITUATIONS[situation], form, write)
    assert_same(got, want)
    if situation not in ("in_inference_mode", "of_an_inference_tensor") and "balancer" not in FORMS[form]:
        assert taken


REFUSED: dict[str, Callable[[Site], Any]] = {
    "x": lambda at: at.results(x=at.leaves["x"].detach().long()),
    "cap": lambda at: at.results(cap=torch.ones(2)),
    "cap_of_ints": lambda at: at.results(cap=torch.ones(3, dtype=torch.int32)),
    "bias": lambda at: at.results(bias=torch.ones(2)),
    "bias_is_no_tensor": lambda at: at.results(bias=[1.0, 2.0, 3.0]),
    "residual": lambda at: at.results(residual=torch.ones(3, 4)),
    "residual_of_another_dtype": lambda at: at.results(residual=torch.ones(4, 3, dtype=torch.bfloat16)),
    "sparse": lambda at: at.results(residual=torch.ones(4, 3).to_sparse()),
    "overlapping": lambda at: at.results(x=torch.ones(1, 3).expand(4, 3)),
    "bias_in_x": lambda at: at.results(x=(x := torch.randn(4, 3)), bias=x[0]),
    "residual_in_x": lambda at: at.results(x=(x := torch.randn(8, 3))[::2], residual=x[1:5]),
}


@by_form
@by_write
@pytest.mark.parametrize("what", REFUSED)
def test_refusals(form: str, write: str, what: str) -> None:
    if "bias" in what or what == "sparse" or "residual" in what:
        # The form's own bias or residual is replaced.
        form = form if form in ("all", "plain") else "plain"
    got, want, _ = both_ways(REFUSED[what], form, write)
    assert_same(got, want)


@pytest.mark.parametrize("balancer", [-1.0, float("nan"), float("inf"), "0.1", True, 10**400])
def test_a_balancer_that_is_refused(balancer: Any) -> None:
    got, want, taken = both_ways(lambda at: at.call(balancer=balancer), "plain", "out_of_place")
    assert_same(got, want)
    assert got[0] in (TypeError, ValueError) and not taken


@by_form
@by_write
def test_each_write_counts_as_one_version(form: str, write: str) -> None:
    at = site(form, write)
    x = at.leaves["x"] * 1
    before = x._version
    at.results(x=x)
    assert (x._version > before) == (write != "out_of_place")


@by_form
@by_write
def test_nothing_is_kept(form: str, write: str) -> None:
    gc.disable()
    try:
        at = site(form, write)
        results = at.results()
        torch.autograd.backward(results, grads_for(results))
        alive = [weakref.ref(one) for one in (*results, *at.leaves.values())]
        del at, results
        assert not any(one() is not None for one in alive)
        # And where backward never runs.
        results = site(form, write).results()
        alive = [weakref.ref(one) for one in results]
        del results
        assert not any(one() is not None for one in alive)
    finally:
        gc.enable()


@by_form
def test_the_node_is_taken_and_shows_what_it_keeps(form: str) -> None:
    at = site(form, "out_of_place")
    results = at.results()
    assert {result.grad_fn.name() for result in results} == {"CappedReLUBackward"}
    node = results[0].grad_fn
    assert [one.variable is leaf for (one, _), leaf in zip(node.next_functions, at.leaves.values(), strict=True)]
    assert node._saved_cap is at.leaves["cap"]
    assert node._saved_result.dtype == (torch.uint8 if "save" in FORMS[form] else torch.float32)


@by_form
def test_the_dispatcher_gives_what_the_kernels_give(form: str) -> None:
    """Past it and by it: under a profiler the operators are called by name."""
    want = forward_and_backward(site(form, "out_of_place"))
    with torch.profiler.profile() as profile:
        got = forward_and_backward(site(form, "out_of_place"))
    assert_same(got, want)
    names = {event.key for event in profile.key_averages()}
    assert names >= {"dreluop::capped_relu_backward", "CappedReLUBackward"}
    assert names & {"dreluop::capped_relu", "dreluop::capped_relu_with_aux"}
