"""What SaturationMonitor takes for a training step: not a recomputation, and nothing that has no values."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

from dreluop import DReLU
from dreluop.diagnostics import SaturationMonitor
from dreluop.surgery import calibrate_caps, cap_summary

X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
Call = Callable[[nn.Module, Tensor], Tensor]


def layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), DReLU(6, init=1.0), nn.Linear(6, 4), DReLU(init=0.5))


class Wrapped(nn.Module):
    """Calls a function of what it holds."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.inside, self.call = layers(), call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.inside, x)


Run = Callable[..., Tensor]


def whole(run: Run, model: nn.Module, x: Tensor) -> Tensor:
    return run(model, x)


def nested(run: Run, model: nn.Module, x: Tensor) -> Tensor:
    return run(lambda x: run(model, 2 * x), x)


def halves(run: Run, model: nn.Module, x: Tensor) -> Tensor:
    return run(model[2:], run(model[:2], x))


def gradient_inside(run: Run, model: nn.Module, x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    # Only this form of checkpoint has gradients with respect to given inputs.
    run = plainly if run is plainly else not_reentrant
    (gradient,) = torch.autograd.grad(run(model, x).sum(), x, create_graph=True)
    # Recomputed elements are measured with others, or the shares would be the same.
    return gradient + model(3 * x)


def plainly(call: Any, x: Tensor) -> Tensor:
    return call(x)


def reentrant(call: Any, x: Tensor) -> Tensor:
    return checkpoint(call, x, use_reentrant=True)


def not_reentrant(call: Any, x: Tensor) -> Tensor:
    return checkpoint(call, x, use_reentrant=False)


@pytest.mark.parametrize("run", [reentrant, not_reentrant])
@pytest.mark.parametrize(
    ("form", "inside"),
    # Around the model, halves would not call it, and gradient_inside would call it twice.
    [(whole, False), (nested, False), (whole, True), (nested, True), (halves, True), (gradient_inside, True)],
)
def test_a_recomputation_is_no_step(form: Callable[..., Tensor], inside: bool, run: Run) -> None:
    def trained(run: Run) -> SaturationMonitor:
        torch.manual_seed(0)
        model: nn.Module = Wrapped(lambda model, x: form(run, model, x)) if inside else layers()
        monitor = SaturationMonitor(model, every=2)
        for step in range(5):
            x = (X + step).requires_grad_()
            (model(x) if inside else form(run, model, x)).sum().backward()
        return monitor

    got, want = trained(run), trained(plainly)
    assert got.step == want.step == 5
    # The same elements, counted once.
    assert list(got.history) == list(want.history) and [one.step for one in got.history] == [1, 3, 5]


def test_calibration_counts_a_recomputation_once() -> None:
    def with_gradient(model: nn.Module, x: Tensor) -> None:
        with torch.enable_grad():
            x = x.clone().requires_grad_()
            checkpoint(model, x, use_reentrant=False).sum().backward()

    model = layers()
    batches = [X, X + 1, X - 2]
    rows = cap_summary(model, batches, progress=False).layers
    assert cap_summary(model, batches, forward=with_gradient, progress=False).layers == rows
    baseline = copy.deepcopy(model)
    calibrate_caps(model, batches, 0.7, forward=with_gradient, progress=False)
    calibrate_caps(baseline, batches, 0.7, progress=False)
    assert torch.equal(model[1].cap, baseline[1].cap)


@pytest.mark.parametrize("run", [reentrant, not_reentrant])
def test_gradient_accumulation_counts_every_forward(run: Run) -> None:
    model = layers()
    monitor = SaturationMonitor(model, every=2)
    for _ in range(3):
        sum(run(model, X.clone().requires_grad_()).sum() for _ in range(2)).backward()
    assert (monitor.step, [one.step for one in monitor.history]) == (6, [1, 3, 5])


@pytest.mark.usefixtures("process_group")
def test_a_checkpoint_in_distributed_data_parallel() -> None:
    model = Wrapped(lambda inside, x: checkpoint(inside, x, use_reentrant=False))
    parallel = nn.parallel.DistributedDataParallel(model)
    monitors = [SaturationMonitor(model, every=1), SaturationMonitor(parallel, every=1)]
    for _ in range(3):
        parallel(X.clone().requires_grad_()).sum().backward()
    assert [(monitor.step, len(monitor.history)) for monitor in monitors] == [(3, 3)] * 2


@pytest.mark.slow
@pytest.mark.parametrize("where", ["around", "inside", "part"])
def test_compiled_after_the_monitor_was_made(where: str) -> None:
    torch._dynamo.reset()
    model = layers()
    monitor = SaturationMonitor(model, every=2)
    call: Any = model
    if where == "around":
        call = torch.compile(model, backend="aot_eager")
    elif where == "inside":
        model.compile(backend="aot_eager")
    else:
        model[1].compile(backend="aot_eager")
    for step in range(6):
        checkpoint(call, (X + step).requires_grad_(), use_reentrant=False).sum().backward()
    assert (monitor.step, [one.step for one in monitor.history]) == (6, [1, 3, 5])
    assert all(len(one.layers) == 2 for one in monitor.history)


def under_vmap(model: nn.Module) -> None:
    torch.vmap(model)(X.unsqueeze(1))


def per_sample_gradients(model: nn.Module) -> None:
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(model, parameters, (x[None],)).sum()

    torch.vmap(torch.func.grad(loss), (None, 0))(parameters, X)


def ensemble(model: nn.Module) -> None:
    parameters = {name: torch.stack([parameter.detach()] * 2) for name, parameter in model.named_parameters()}
    torch.vmap(lambda parameters: torch.func.functional_call(model, parameters, (X,)))(parameters)


@pytest.mark.parametrize("call", [under_vmap, per_sample_gradients, ensemble])
def test_vmap_is_refused_in_a_sentence(call: Callable[[nn.Module], None]) -> None:
    model = layers()
    with SaturationMonitor(model) as monitor:
        model(X)
        for _ in range(2):
            with pytest.raises(RuntimeError, match=r"SaturationMonitor: not inside torch\.vmap; call the model on"):
                call(model)
        model.eval()
        call(model)
        model.train()
        model(X)
        assert (monitor.step, len(monitor.history)) == (2, 1)
    for measure in (calibrate_caps, cap_summary):
        with pytest.raises(RuntimeError, match=r"model: not inside torch\.vmap"):
            measure(model, [X], forward=lambda model, _: call(model), progress=False)
    call(model)


def test_functionalize_is_refused_in_a_sentence() -> None:
    model = layers()
    call = torch.func.functionalize(model)
    with SaturationMonitor(model, every=1) as monitor:
        with pytest.raises(RuntimeError, match=r"SaturationMonitor: not inside torch\.func\.functionalize; measure"):
            call(X)
        assert (monitor.step, monitor.latest) == (0, None)
        make_fx(call)(X)
        model(X)
        assert (monitor.step, len(monitor.history)) == (1, 1)
    for measure in (calibrate_caps, cap_summary):
        with pytest.raises(RuntimeError, match=r"model: not inside torch\.func\.functionalize"):
            measure(model, [X], forward=lambda _, x: call(x), progress=False)


def test_other_transforms_are_measured_as_plain_calls() -> None:
    model = layers()
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    plain = SaturationMonitor(model, every=1)
    model(X)
    with plain, SaturationMonitor(model, every=1) as monitor:
        torch.func.grad(lambda x: model(x).sum())(X)
        torch.func.jvp(model, (X,), (X,))
        torch.func.vjp(model, X)
        torch.func.functional_call(model, parameters, (X,))
        torch.func.grad(lambda p: torch.func.functional_call(model, p, (X,)).sum())(parameters)
    assert [one.layers for one in monitor.history] == [plain.history[0].layers] * 5


def on_fakes(model: nn.Module) -> None:
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        model(mode.from_tensor(X))


NO_VALUES: dict[str, Callable[[nn.Module], Any]] = {
    "make_fx": lambda model: make_fx(model)(X),
    "export": lambda model: torch.export.export(model, (X,)),
    "fake tensors": on_fakes,
}


@pytest.mark.parametrize("name", NO_VALUES)
def test_a_trace_is_no_step(name: str) -> None:
    model = layers()
    with SaturationMonitor(model, every=1) as monitor:
        NO_VALUES[name](model)
        assert (monitor.step, monitor.latest) == (0, None)
        model(X)
    assert (monitor.step, len(monitor.history)) == (1, 1)


def test_a_model_on_meta_has_nothing_to_measure() -> None:
    model = layers().to("meta")
    with SaturationMonitor(model, every=1) as monitor:
        model(X.to("meta"))
    assert monitor.latest is None


def test_a_cuda_graph_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    model = layers()
    with SaturationMonitor(model, every=5) as monitor:
        model(X)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        with pytest.raises(RuntimeError, match="SaturationMonitor: the model is captured into a CUDA graph"):
            model(X)
        assert monitor.step == 1


def test_a_deep_copy_does_not_count_for_the_original() -> None:
    model = layers()
    with SaturationMonitor(model, every=1) as monitor:
        baseline = copy.deepcopy(model)
        baseline(X)
        assert (monitor.step, monitor.latest) == (0, None)
        model(X)
    assert (monitor.step, len(monitor.history)) == (1, 1)


def test_a_number_is_one_sample() -> None:
    model = nn.Sequential(DReLU(init=2.0))
    with SaturationMonitor(model, every=1) as monitor:
        model(torch.tensor(1.0))
        model(torch.tensor(3.0))
    assert [(one.layers[0].inside, one.layers[0].no_live) for one in monitor.history] == [(1, 0), (0, 1)]
