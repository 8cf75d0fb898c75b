"""Attack a capped network honestly: `python examples/honest_evaluation.py`.

Small caps make most input gradients exactly zero, so attacks that follow the gradient fail, and the network looks
robust. Attacks that know of the caps show that it is not.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import dreluop
from dreluop import adaptive

EPS = 0.1


def main() -> None:
    torch.manual_seed(0)
    x, label = make_data()
    # Both networks have the same weights and training data. The caps of one start low.
    torch.manual_seed(1)
    capped = train(make_network(dreluop.DReLU(64, init=0.05)), x, label)
    torch.manual_seed(1)
    baseline = train(make_network(nn.ReLU()), x, label)
    assert len(adaptive.reached_caps(capped, x)) == 1  # the attacks below can see the cap

    masked = zero_gradient_share(capped, x, label)
    print(f"clean accuracy: capped {accuracy(capped, x, label):.1%}, ReLU {accuracy(baseline, x, label):.1%}")
    print(f"inputs without any gradient: capped {masked:.1%}, ReLU {zero_gradient_share(baseline, x, label):.1%}")

    # Widths for single samples too: measured once, on many.
    std = adaptive.measure_std(capped, x)
    attacks: dict[str, AbstractContextManager[None]] = {
        "PGD along the exact gradient": nullcontext(),
        "straight through the cap": adaptive.surrogate_backward("straight_through"),
        "soft slope": adaptive.surrogate_backward("soft", tau=0.1, std=std),
        "smooth forward": adaptive.smooth_forward(tau=0.1, std=std),
    }
    found = {}
    for name, context in attacks.items():
        with context:
            adversarial = pgd(capped, x, label)
        # Count what the attack found on the real network, outside of the block.
        found[name] = accuracy(capped, adversarial, label)
    found["examples made on the ReLU baseline"] = accuracy(capped, pgd(baseline, x, label), label)
    for name, value in found.items():
        print(f"accuracy under {name:36} {value:.1%}")
    worst, of_baseline = min(found.values()), accuracy(baseline, pgd(baseline, x, label), label)
    print(
        f"Report the lowest, {worst:.1%}, beside the share of zero gradients. The ReLU network has {of_baseline:.1%}."
    )
    assert worst < found["PGD along the exact gradient"]


def make_data(samples: int = 400) -> tuple[Tensor, Tensor]:
    """Points in [0, 1] ** 20 of four classes, each near its center."""
    centers = 0.3 + 0.4 * torch.rand(4, 20)
    label = torch.arange(samples) % 4
    return (centers[label] + 0.1 * torch.randn(samples, 20)).clamp(0, 1), label


def make_network(activation: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), activation, nn.Linear(64, 4))


def train(model: nn.Module, x: Tensor, label: Tensor) -> nn.Module:
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(model(x), label).backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


def pgd(model: nn.Module, x: Tensor, label: Tensor, steps: int = 40) -> Tensor:
    """Projected gradient descent in the ball of radius EPS, from a random start."""
    adversarial = x + EPS * (2 * torch.rand_like(x) - 1)
    for _ in range(steps):
        step = EPS / 10 * input_gradient(model, adversarial, label).sign()
        adversarial = (adversarial + step).clamp(x - EPS, x + EPS).clamp(0, 1)
    return adversarial


def input_gradient(model: nn.Module, x: Tensor, label: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    # A mean would scale every gradient by 1 / N.
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), label, reduction="sum"), x)
    return gradient


def zero_gradient_share(model: nn.Module, x: Tensor, label: Tensor) -> float:
    return float((input_gradient(model, x, label) == 0).all(1).float().mean())


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, label: Tensor) -> float:
    return float((model(x).argmax(1) == label).float().mean())


if __name__ == "__main__":
    main()
