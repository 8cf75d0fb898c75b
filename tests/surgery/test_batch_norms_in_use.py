"""A network of fuse="batch_norm" compiled, exported, traced, under autocast, recomputed, copied and measured."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dreluop import adaptive, cap_penalty, param_groups, project_caps
from dreluop.caps import flatten
from dreluop.diagnostics import SaturationMonitor
from dreluop.surgery import calibrate_caps, cap_summary, freeze_caps, replace_activations, set_caps, to_torch
from tests.surgery.batch_norms import Users, operated, users, with_forward

X = torch.randn(4, 4, 5, 5, generator=torch.Generator().manual_seed(0))


def gradients(model: nn.Module, run: Any = None) -> list[Tensor]:
    y = (model if run is None else run)(X)
    return [y, *torch.autograd.grad(y.square().sum(), list(model.parameters()))]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_compiled(training: bool) -> None:
    model = users(init=0.5).train(training)
    compiled = copy.deepcopy(model)
    torch._dynamo.reset()
    run = torch.compile(compiled, backend="aot_eager", fullgraph=True)
    for got, want in zip(gradients(compiled, run), gradients(model), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    for got, want in zip(compiled.buffers(), model.buffers(), strict=True):
        torch.testing.assert_close(got, want)


def test_exported() -> None:
    model = users(init=0.5)
    model(X)
    exported = torch.export.export(model.eval(), (X,)).run_decompositions()
    torch.testing.assert_close(exported.module()(X), model(X))


def test_in_onnx() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    from dreluop.onnx import translations  # noqa: PLC0415 (needs onnxscript)

    model = users(init=0.5)
    model(X)
    stored = io.BytesIO()
    torch.onnx.export(model.eval(), (X,), stored, dynamo=True, custom_translation_table=translations(), verbose=False)
    session = onnxruntime.InferenceSession(stored.getvalue(), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: X.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), model(X).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_traced_by_fx_with_the_mode_it_has_when_called(training: bool) -> None:
    model = users(init=0.5).train(training)
    before = copy.deepcopy(model.state_dict())
    graph = torch.fx.symbolic_trace(model)
    assert {"bn1", "bn2", "stem.1"} <= {node.target for node in graph.graph.nodes if node.op == "call_module"}
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    for mode in (True, False):
        other = copy.deepcopy(model).train(mode)
        torch.testing.assert_close(copy.deepcopy(graph).train(mode)(X), other(X))


def test_autocast() -> None:
    fused, apart = users(init=0.5), Users()
    replace_activations(apart, init=0.5, example_input=X)
    apart.load_state_dict(fused.state_dict(), strict=False)
    with torch.autocast("cpu", torch.bfloat16):
        got, want = fused(X), apart(X)
    assert got.dtype is torch.bfloat16
    torch.testing.assert_close(got, want, rtol=0.05, atol=0.05)
    # The residual of another dtype is added first.
    with torch.autocast("cpu", torch.bfloat16):
        fused.bn2(X.bfloat16(), X).sum().backward()
    assert fused.bn2.cap.grad is not None


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputed_activations(reentrant: bool) -> None:
    model = users(init=0.5)
    given = X.clone().requires_grad_()

    def run(x: Tensor) -> Tensor:
        return checkpoint(model, given, use_reentrant=reentrant)  # type: ignore[no-any-return]

    other = copy.deepcopy(model)
    run(X).square().sum().backward()
    other(X).square().sum().backward()
    for got, want in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(got.grad, want.grad)


def test_copies_and_pickles() -> None:
    model = users(init=0.5)
    model(X)
    model.eval()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(X), model(X))
        assert type(other.bn2) is type(model.bn2)


def test_the_tools_for_caps() -> None:
    model = users(init=0.5)
    names = ["stem.1", "bn1", "bn2", "relu_2"]
    assert sorted(set_caps(model, 0.25)) == sorted(names)
    assert sorted(freeze_caps(model)) == sorted(names)
    freeze_caps(model, False)
    assert len(param_groups(model, lr=0.1)[1]["params"]) == 4
    assert cap_penalty(model, 1.0).item() == 16 * 0.25**2
    project_caps(model, 1.0)
    assert [layer.cap_min for layer in cap_summary(model).layers] == [1.0] * 4


def pre_activations(model: Any, x: Tensor) -> dict[str, Tensor]:
    """By torch's modules, of a model whose caps are open."""
    found: dict[str, Tensor] = {}
    norms = {name: module for name, module in model.named_modules() if type(module) is nn.BatchNorm2d}
    for name, norm in norms.items():
        norm.register_forward_hook(lambda _, x, y, name=name: found.__setitem__(name, y.detach().clone()))
    stem: list[Tensor] = []
    model.stem.register_forward_hook(lambda _, x, y: stem.append(y.detach().clone()))
    model(x)
    found["bn2"] = found["bn2"] + stem[0]
    return found


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_calibration_is_of_what_is_capped_and_moves_no_statistics(training: bool) -> None:
    model = users(init=torch.inf)
    set_caps(model, torch.inf)
    # A channel that is off would get the caps of the others.
    nn.init.constant_(model.bn2.bias, 1.0)
    model(X)
    model.train(training)
    plain = Users().eval()
    plain.stem[2] = nn.ReLU()
    plain.load_state_dict(model.state_dict(), strict=False)
    before = copy.deepcopy(list(model.buffers()))
    calibrate_caps(model, [X], quantile=1.0, progress=False)
    for name, value in pre_activations(plain, X).items():
        torch.testing.assert_close(model.get_submodule(name).cap, value.amax((0, 2, 3)), msg=name)
    assert all(torch.equal(one, other) for one, other in zip(model.buffers(), before, strict=True))


def test_a_monitor_in_training_sees_the_statistics_of_the_batch() -> None:
    model = users(init=torch.inf)
    set_caps(model, torch.inf)
    plain = Users()
    plain.stem[2] = nn.ReLU()
    plain.load_state_dict(model.state_dict(), strict=False)
    before = copy.deepcopy(model)
    with SaturationMonitor(model, every=1) as monitor:
        model(X)
    before(X)
    assert all(torch.equal(one, other) for one, other in zip(model.buffers(), before.buffers(), strict=True))
    layers = {layer.name: layer for layer in monitor.latest.layers}
    for name, value in pre_activations(plain, X).items():
        assert layers[name].off == pytest.approx((value <= 0).double().mean().item()), name
        assert layers[name].granularity == "channel"


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_removed_caps(training: bool) -> None:
    model = users(init=0.1).train(training)
    view = adaptive.remove_caps(model)
    assert view.bn1.weight is model.bn1.weight
    assert view.training == training
    plain = Users().train(training)
    plain.stem[2] = nn.ReLU()
    plain.load_state_dict(model.state_dict(), strict=False)
    before = copy.deepcopy(list(model.buffers()))
    torch.testing.assert_close(view(X), plain(X))
    assert all(torch.equal(one, other) for one, other in zip(model.buffers(), before, strict=True))


def relu6_of_a_name(self: Any, x: Tensor) -> Tensor:
    h = self.conv(x)
    n = self.bn(h)
    return nn.functional.relu6(n) + h


def test_removed_caps_of_a_bound_in_the_code() -> None:
    model, _ = operated(with_forward(relu6_of_a_name), example_input=X)
    nn.init.constant_(model.bn.bias, 10.0)
    h = model.conv(X)
    torch.testing.assert_close(
        adaptive.remove_caps(model)(X),
        nn.functional.batch_norm(h, None, None, model.bn.weight, model.bn.bias, training=True) + h,
    )


def test_caps_in_one_parameter() -> None:
    model = users(init=0.3)
    apart = copy.deepcopy(model)
    flatten(model)
    torch.testing.assert_close(model(X), apart(X))
    for given in (adaptive.remove_caps, to_torch):
        one, other = given(model), given(apart)
        assert one.state_dict().keys() == other.state_dict().keys()
        torch.testing.assert_close(one(X), other(X))
    assert b"dreluop" not in pickle.dumps(to_torch(model).bn2)


def test_surrogates_reach_every_cap() -> None:
    model = users(init=0.3).eval()
    assert len(adaptive.reached_caps(model, X)) == 4
    std = adaptive.measure_std(model, X)
    assert len(std) == 4
    given = X.clone().requires_grad_()
    with adaptive.surrogate_backward("soft", std=std):
        soft = torch.autograd.grad(model(given).sum(), given)[0]
    exact = torch.autograd.grad(model(given).sum(), given)[0]
    assert (soft != 0).sum() > (exact != 0).sum()
    facts = adaptive.evaluation.caps.cap_facts(model, X, 2)
    assert facts is not None
    assert facts.largest == pytest.approx(6)
    assert facts.live_units > 0
