"""What a trained model is worth: accuracy, clean and attacked, and the share of inputs with zero gradient beside it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dreluop.adaptive.attacks import fgsm, frozen, pgd, zero_gradient_share
from studies.drelu_paper.data import Split


@dataclass(frozen=True)
class Evaluation:
    """Shares in [0, 1]: accuracy on clean, FGSM and PGD inputs, and the inputs with an all-zero gradient."""

    clean: float
    fgsm: float
    pgd: float
    zero_gradient: float


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of the inputs that the model, in eval mode, classifies as y."""
    with frozen(model), torch.no_grad():
        return float((model(x).argmax(dim=1) == y).float().mean())


def evaluate(model: nn.Module, split: Split, eps: float, seed: int = 0) -> Evaluation:
    """The paper's two attacks, at eps in the L-infinity norm, on every input of the split.

    Args:
        model: gives logits of shape (N, classes).
        split: inputs in [0, 1] and labels, on the model's device.
        eps: radius of the ball.
        seed: of PGD's random start.
    """
    x, y = split
    return Evaluation(
        clean=accuracy(model, x, y),
        fgsm=accuracy(model, fgsm(model, x, y, eps), y),
        pgd=accuracy(model, pgd(model, x, y, eps, seed=seed), y),
        zero_gradient=zero_gradient_share(model, x, y),
    )
