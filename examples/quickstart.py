"""Train a small network with a D-ReLU layer: `python examples/quickstart.py`.

Learnable caps need three things: a learning rate of their own, the penalty in the loss, and a projection after each
step that keeps them above 0.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

import dreluop

STEPS = 200
BALANCER = 1e-4  # the weight of the penalty, balancer * sum(cap ** 2)


def main() -> None:
    torch.manual_seed(0)
    x, label = make_data()
    model = nn.Sequential(
        nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), dreluop.DReLU(64, init=5.0), nn.Linear(64, 4)
    )

    # Two groups: Adam moves a cap by about its learning rate per step, so caps need a larger one than weights.
    optimizer = torch.optim.Adam(dreluop.param_groups(model, lr=1e-3, cap_lr=1e-2))
    # At or below 0 a cap has no gradient from the loss, so keep caps at 1e-3 or above.
    dreluop.project_caps_after_step(optimizer, model)

    losses = [train_step(model, optimizer, x, label) for _ in range(STEPS)]

    cap = model[3].cap
    accuracy = (model(x).argmax(1) == label).float().mean()
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}, training accuracy {accuracy:.1%}")
    print(f"caps 5.00 -> {cap.min():.2f} to {cap.max():.2f}")
    # Which elements are off, inside or capped, and which samples have a gradient at all.
    counts = dreluop.saturation(model[:3](x), cap)
    capped, with_gradient = counts.capped.sum() / (len(x) * 64), counts.has_gradient.float().mean()
    print(f"capped {capped:.1%}, samples with a gradient {with_gradient:.1%}")
    assert losses[-1] < losses[0] / 2
    assert cap.min() > 0 and cap.max() < 5


def make_data(samples: int = 512) -> tuple[torch.Tensor, torch.Tensor]:
    """Points in 20 dimensions, labeled by the nearest of four random centers."""
    centers = torch.randn(4, 20)
    x = torch.randn(samples, 20)
    return x, torch.cdist(x, centers).argmin(1)


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, label: torch.Tensor) -> float:
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), label) + dreluop.cap_penalty(model, balancer=BALANCER)
    loss.backward()
    optimizer.step()
    # Watch the total loss, penalty included: the cross-entropy alone stops falling before the caps have moved.
    return loss.item()


if __name__ == "__main__":
    main()
