"""A trained network that stands flipped bits: bound its activations, let its weights show that they were hit.

One bit in a thousand of the weights flips. Without protection nothing of the network is left.
"""

import torch
from torch import nn

from dreluop import surgery
from dreluop.faults import bit_flips, protect_weights


def trained() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A small network that tells which of four corners a point is nearest to."""
    torch.manual_seed(0)
    x = torch.rand(2000, 2)
    label = (x[:, 0] > 0.5).long() + 2 * (x[:, 1] > 0.5).long()
    model = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), label).backward()
        optimizer.step()
    return model.eval(), x, label


def main() -> None:
    model, x, label = trained()

    def accuracy() -> float:
        return (model(x).argmax(1) == label).float().mean().item()

    generator = torch.Generator().manual_seed(1)
    print(f"clean: {accuracy():.1%}")
    with bit_flips(model, 1e-3, generator=generator):
        print(f"one bit in a thousand flipped: {accuracy():.1%}")

    print(surgery.protect(model, [x], progress=False))
    weights = protect_weights(model)
    print(f"protected, clean: {accuracy():.1%}")
    with bit_flips(nn.ModuleList([model, weights]), 1e-3, generator=generator):
        print(f"protected, flipped: {accuracy():.1%}")
        print(weights.repair(model))
        print(f"protected, flipped, repaired: {accuracy():.1%}")


if __name__ == "__main__":
    main()
