"""AutoAttack and its parts (Croce & Hein, ICML 2020), by pyautoattack, their code as a package."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyautoattack import AutoAttack
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

from dreluop.adaptive.attacks.checks import at_least_one, check_arguments, checked, frozen

# The package tells of zero gradients there, for every batch; the evaluation counts them itself.
_LOGGER = logging.getLogger("auto-attack")
_LOGGER.addHandler(logging.NullHandler())

AUTO_ATTACK_TARGETS = 9


def apgd_ce(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int = 100, seed: int = 0, *, keep_best: bool = False
) -> Tensor:
    """Auto-PGD on the cross-entropy, L-infinity.

    Args:
        model: gives logits of shape (N, classes); attacked in eval mode with frozen weights, both restored.
        x: float32 inputs in [0, 1], the first dimension is the sample; not changed.
        y: labels, int64, shape (N,).
        eps: radius of the ball, in units of x, >= 0.
        steps: of each run, >= 1.
        seed: of the random start.
        keep_best: give the point of the highest loss for every input; else inputs that stay right come back unchanged.

    Returns:
        Adversarial inputs of x's shape, in [0, 1] and in the ball around x.

    Raises:
        ValueError: x is not in [0, 1], eps is negative or not finite, steps < 1, or the loss needs more classes.
        RuntimeError: the attack left [0, 1] or the ball, or gave NaN.
    """
    return _apgd("ce", model, x, y, eps, steps, seed, keep_best)


def apgd_dlr(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int = 100, seed: int = 0, *, keep_best: bool = False
) -> Tensor:
    """Auto-PGD on the difference of logits ratio, whose gradient does not depend on the scale of the logits.

    Args, Returns, Raises: as ``apgd_ce``; needs three classes.
    """
    return _apgd("dlr", model, x, y, eps, steps, seed, keep_best)


def apgd_targeted(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    steps: int = 100,
    seed: int = 0,
    targets: int = AUTO_ATTACK_TARGETS,
) -> Tensor:
    """Auto-PGD on the targeted difference of logits ratio, towards each of the next likely classes.

    Args, Returns, Raises: as ``apgd_ce``; needs four classes. Inputs that stay right come back unchanged.

        targets: number of target classes; at most all others are tried.
    """
    at_least_one("targets", targets)
    classes = _classes(model, x, 4)

    def run() -> Tensor:
        attack = APGDAttack_targeted(model, n_target_classes=min(targets, classes - 1), **_options(x, eps, steps, seed))
        adversarial: Tensor = attack.perturb(x, y)
        return adversarial

    return _run(run, model, x, eps, steps)


def square(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    queries: int = 5000,
    seed: int = 0,
    *,
    rescale: bool = False,
) -> Tensor:
    """The Square attack (Andriushchenko et al., ECCV 2020), L-infinity: random search, no gradient.

    Args, Returns, Raises: as ``apgd_ce``; x must be images, of shape (N, C, H, W).

        queries: of the model, per input, >= 1.
        rescale: let the squares shrink over the budget; without it, as in AutoAttack, over 10,000 queries. Stronger
            where the budget is small.
    """
    if x.ndim != 4:
        raise ValueError(f"x: got shape {tuple(x.shape)}; expected images, (N, C, H, W)")

    def run() -> Tensor:
        attack = SquareAttack(
            model, p_init=0.8, n_queries=queries, eps=eps, seed=seed, device=x.device, resc_schedule=rescale
        )
        adversarial: Tensor = attack.perturb(x, y)
        return adversarial

    return _run(run, model, x, eps, queries)


def auto_attack(model: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int = 0, batch_size: int = 250) -> Tensor:
    """Standard AutoAttack, L-infinity: APGD-CE, targeted APGD, targeted FAB, Square with 5,000 queries.

    Not enough for a capped network: where the gradient is exactly zero, three of its four parts do nothing.

    Args, Returns, Raises: as ``apgd_ce``; x must be images, and its targeted parts need ten classes.
    """
    if x.ndim != 4:
        raise ValueError(f"x: got shape {tuple(x.shape)}; expected images, (N, C, H, W)")
    _classes(model, x, AUTO_ATTACK_TARGETS + 1)

    def run() -> Tensor:
        attack = AutoAttack(model, eps=eps, seed=seed, device=x.device)
        adversarial: Tensor = attack.run_standard_evaluation(x, y, batch_size=batch_size)[0]
        return adversarial

    return _run(run, model, x, eps)


def _apgd(
    loss: str, model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int, seed: int, keep_best: bool
) -> Tensor:
    if loss == "dlr":
        _classes(model, x, 3)

    def run() -> Tensor:
        torch.manual_seed(seed)  # With best_loss, the package does not.
        attack = APGDAttack(model, loss=loss, **_options(x, eps, steps, seed))
        adversarial: Tensor = attack.perturb(x, y, best_loss=keep_best)
        return adversarial

    return _run(run, model, x, eps, steps)


def _options(x: Tensor, eps: float, steps: int, seed: int) -> dict[str, Any]:
    return {"n_iter": steps, "eps": eps, "seed": seed, "device": x.device, "logger": _LOGGER}


def _run(run: Callable[[], Tensor], model: nn.Module, x: Tensor, eps: float, steps: int = 1) -> Tensor:
    check_arguments(x, eps)
    at_least_one("steps", steps)
    if len(x) == 0:
        return x.clone()
    with frozen(model), _own_random_state(x.device):
        return checked(run().detach(), x, eps)


def _classes(model: nn.Module, x: Tensor, least: int) -> int:
    with frozen(model), torch.no_grad():
        classes = int(model(x[:1]).shape[1])
    if classes < least:
        raise ValueError(f"model: got {classes} classes; this attack's loss needs at least {least}")
    return classes


@contextmanager
def _own_random_state(device: torch.device) -> Iterator[None]:
    # The package seeds torch's global generators.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
