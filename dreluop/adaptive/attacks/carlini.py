"""The attack of Carlini & Wagner (2017) in the L2 norm, by foolbox."""

from __future__ import annotations

import foolbox
import torch
from torch import Tensor, nn

from dreluop.adaptive.attacks.checks import at_least_one, check_arguments, checked, distances, frozen


def carlini_wagner(
    model: nn.Module, x: Tensor, y: Tensor, steps: int = 200, searches: int = 6
) -> tuple[Tensor, Tensor]:
    """The nearest wrong inputs that the attack finds, whatever their distance.

    Args:
        model: gives logits of shape (N, classes); attacked in eval mode with frozen weights, both restored.
        x: inputs in [0, 1], the first dimension is the sample; not changed.
        y: labels, int64, shape (N,).
        steps: of each search, >= 1.
        searches: of the binary search for the weight of the distance, >= 1.

    Returns:
        Inputs of x's shape in [0, 1], x itself where none was found; and their L2 distances, shape (N,), infinity
        where none was found.

    Raises:
        ValueError: x is not in [0, 1], steps or searches < 1.
        RuntimeError: the attack left [0, 1] or gave NaN.
    """
    check_arguments(x, 0.0)
    at_least_one("steps", steps)
    at_least_one("searches", searches)
    x = x.detach().clone()
    if len(x) == 0:
        return x, x.new_zeros(0)
    with frozen(model):
        attacked = foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)
        # Foolbox' own step size, 0.01, and first weight, 0.001, are far from converged after 200 steps.
        attack = foolbox.attacks.L2CarliniWagnerAttack(
            binary_search_steps=searches, steps=steps, stepsize=0.05, initial_const=0.1
        )
        found, _, success = attack(attacked, x, y, epsilons=None)
    found = torch.where(success.view(-1, *[1] * (x.ndim - 1)), found.detach().clamp(0, 1), x)
    checked(found, x, float("inf"), "L2")
    # An input that is wrong from the start is at distance 0.
    return found, torch.where(success, distances(found, x, "L2"), torch.inf)


def cw_l2(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int = 200, searches: int = 6) -> Tensor:
    """The attack as the paper uses it: a wrong input within an L2 distance of eps, else the input itself.

    Args, Returns, Raises: as ``carlini_wagner``; eps is an L2 distance in units of x.
    """
    check_arguments(x, eps)
    found, distance = carlini_wagner(model, x, y, steps, searches)
    within = (distance <= eps).view(-1, *[1] * (x.ndim - 1))
    return checked(torch.where(within, found, x), x, eps, "L2")
