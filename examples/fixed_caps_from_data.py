"""Bound the activations of a trained network at what its data needs: `python examples/fixed_caps_from_data.py`.

Nothing is trained again. Caps at the 0.999 quantile of the activations change the accuracy little, and stop huge
values, such as those of a bit that flipped in memory.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from dreluop.surgery import calibrate_caps, freeze_caps, replace_activations

FAULTS = 50


def main() -> None:
    torch.manual_seed(0)
    x, label = make_data()
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    train(model, x, label)
    faults = [(int(torch.randint(64, ())), int(torch.randint(20, ()))) for _ in range(FAULTS)]
    print(f"ReLU:   accuracy {accuracy(model, x, label):.1%}, with a fault {with_faults(model, faults, x, label):.1%}")
    before, unbounded = accuracy(model, x, label), with_faults(model, faults, x, label)

    replace_activations(model, granularity="channel")
    print(calibrate_caps(model, x.split(128), quantile=0.999, progress=False))
    freeze_caps(model)  # an optimizer leaves them alone now

    after, bounded = accuracy(model, x, label), with_faults(model, faults, x, label)
    print(f"capped: accuracy {after:.1%}, with a fault {bounded:.1%}")
    assert after > before - 0.01
    assert bounded > unbounded


def make_data(samples: int = 512) -> tuple[Tensor, Tensor]:
    """Points in 20 dimensions, labeled by the nearest of four random centers."""
    centers = torch.randn(4, 20)
    x = torch.randn(samples, 20)
    return x, torch.cdist(x, centers).argmin(1)


def train(model: nn.Module, x: Tensor, label: Tensor) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(200):
        optimizer.zero_grad()
        F.cross_entropy(model(x), label).backward()
        optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, label: Tensor) -> float:
    return float((model(x).argmax(1) == label).float().mean())


@torch.no_grad()
def with_faults(model: nn.Sequential, faults: list[tuple[int, int]], x: Tensor, label: Tensor) -> float:
    """The mean accuracy while the highest bit of the exponent of one weight of the first layer is flipped."""
    weight = model[0].weight
    bits = weight.view(torch.int32)  # the same memory
    found = []
    for row, column in faults:
        bits[row, column] ^= 1 << 30
        found.append(accuracy(model, x, label))
        bits[row, column] ^= 1 << 30
    return sum(found) / len(found)


if __name__ == "__main__":
    main()
