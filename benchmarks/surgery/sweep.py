"""Surgery on torchvision's classifiers: all calls found, outputs the same bit for bit, a gradient for every cap."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from dreluop import DReLU
from dreluop.surgery import replace_activations, set_caps

# Networks with more parameters than this are traced and cut, but not run; of a family of such ones, one is run.
RUN_BELOW = 100_000_000
REPRESENTATIVES = ("vgg11",)
_FIXED_SIZES = {"vit_": 224, "maxvit": 224, "inception": 299}
_WITHOUT_PARAMETERS = (nn.ReLU, nn.ReLU6)
_FUNCTIONS = (functional.relu, functional.relu6, torch.relu, torch.relu_)


@dataclass(frozen=True)
class Row:
    """One network.

    Attributes:
        parameters: of the original.
        calls_train, calls_eval: calls of ReLU and ReLU6 in a trace of the whole original in either mode.
        found, replaced, fused: sites of the surgery.
        remaining: places with a ReLU that a run of the operated network sees outside of a D-ReLU; None: not run.
        seconds: that the surgery took.
        equal: whether the outputs in eval mode are the original's, with caps at infinity and 6; None: not run.
        caps_with_gradient: D-ReLUs whose caps got a gradient in a training step; None: not run.
    """

    name: str
    parameters: int
    calls_train: int
    calls_eval: int
    found: int
    replaced: int
    fused: int
    seconds: float
    equal: bool | None
    caps_with_gradient: int | None
    remaining: int | None = None

    @property
    def failure(self) -> str:
        """What is wrong; empty if nothing is."""
        checks = {
            "calls are missing": self.found != max(self.calls_train, self.calls_eval),
            "sites are left": self.replaced != self.found,
            "outputs differ": self.equal is False,
            "ReLUs remain": bool(self.remaining),
            "caps are without gradient": self.caps_with_gradient not in (None, self.replaced),
        }
        return ", ".join(name for name, wrong in checks.items() if wrong)


def names() -> Sequence[str]:
    """All of torchvision's classifiers."""
    from torchvision import models  # noqa: PLC0415 (optional)

    result: list[str] = models.list_models(module=models)
    return result


def make(name: str) -> nn.Module:
    """A network with fresh weights, in eval mode."""
    from torchvision import models  # noqa: PLC0415 (optional)

    # GoogLeNet and Inception draw truncated normals for minutes, and warn where nobody says whether they shall.
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model: nn.Module = models.get_model(name, weights=None, **options)
    return model.eval()


def example(name: str, samples: int = 2) -> Tensor:
    """A small input of a size that the network takes."""
    size = next((size for prefix, size in _FIXED_SIZES.items() if name.startswith(prefix)), 64)
    return torch.randn(samples, 3, size, size)


def calls(model: nn.Module, training: bool) -> int:
    """ReLU and ReLU6 calls in a trace of the whole network, counted by torch.fx alone."""
    before = model.training
    traced = fx.symbolic_trace(model.train(training))
    model.train(before)
    modules = dict(traced.named_modules())
    return sum(
        isinstance(modules.get(str(node.target)), _WITHOUT_PARAMETERS)
        if node.op == "call_module"
        else node.target in (_FUNCTIONS if node.op == "call_function" else ("relu", "relu_"))
        for node in traced.graph.nodes
        if node.op.startswith("call_")
    )


def check(name: str) -> Row:
    """Cut a network and compare it with the original."""
    torch.manual_seed(0)
    original = make(name)
    parameters = sum(parameter.numel() for parameter in original.parameters())
    counted = calls(original, True), calls(original, False)
    run = parameters <= RUN_BELOW or name in REPRESENTATIVES
    model = copy.deepcopy(original) if run else original
    started = time.perf_counter()
    report = replace_activations(model, init=1.0)
    seconds = round(time.perf_counter() - started, 3)
    facts = (name, parameters, *counted, len(report.sites), len(report.replaced), len(report.fused), seconds)
    if not run or not report.replaced:
        return Row(*facts, None, None)
    gradients = _caps_with_gradient(model, example(name))
    # The step above moved the statistics of batch norm.
    model.load_state_dict(original.state_dict(), strict=False)
    set_caps(model, {site.name: site.bound or math.inf for site in report.replaced})
    x = example(name)
    with torch.no_grad():
        equal = torch.equal(model.eval()(x.clone()), original(x.clone()))
    remaining = len(report.verify(model, x).remaining)
    return Row(*facts, equal, gradients, remaining)


def _caps_with_gradient(model: nn.Module, x: Tensor) -> int:
    outputs = model.train()(x)
    parts = [part for part in (outputs if isinstance(outputs, tuple) else (outputs,)) if part is not None]
    sum(part.square().mean() for part in parts).backward()  # type: ignore[union-attr]
    layers = [layer for layer in model.modules() if isinstance(layer, DReLU)]
    return sum(layer.cap.grad is not None and bool(layer.cap.grad.isfinite().all()) for layer in layers)
