"""What is minimized: loss (1) of the paper, and the losses of its two baselines."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from dreluop import DReLU, cap_penalty
from dreluop.adaptive.attacks import frozen, pgd
from dreluop.caps.optim import MINIMUM
from studies.drelu_paper.training.config import TrainingConfig

# Positive, so that a cap that was driven down can still be raised by the loss: clamped at 0, with balancer 1, the whole
# head died within five epochs.
CAP_FLOOR = MINIMUM

# Of the random start of TRADES, as its authors have it.
_TRADES_NOISE = 1e-3


def caps_of(model: nn.Module) -> list[nn.Parameter]:
    """The caps of the model's DReLU modules, each once."""
    return list({id(m.cap): m.cap for m in model.modules() if isinstance(m, DReLU)}.values())


def penalty(model: nn.Module, balancer: float) -> Tensor:
    """``balancer * sum m^2``; a zero for a model without caps."""
    caps = caps_of(model)
    return cap_penalty(caps, balancer) if caps else torch.zeros(())


def total_loss(model: nn.Module, x: Tensor, y: Tensor, balancer: float) -> Tensor:
    """Loss (1) of the paper: mean cross-entropy + balancer * sum m^2; without caps the cross-entropy alone."""
    loss = F.cross_entropy(model(x), y)
    return loss + penalty(model, balancer) if caps_of(model) else loss


def training_loss(
    model: nn.Module, plain: nn.Module, x: Tensor, y: Tensor, config: TrainingConfig, seed: int
) -> Tensor:
    """The mean over the samples of the loss of ``config.method``, without the penalty.

    The model is called once. TRADES gives it clean and attacked samples as one batch, so a batch norm sees both.
    ``plain`` has the same parameters without wrappers (of DDP, of torch.compile), for the attacks.
    """
    if config.method == "natural":
        return F.cross_entropy(model(x), y)
    step = 2.5 * config.eps / config.attack_steps
    if config.method == "at":
        return F.cross_entropy(model(pgd(plain, x, y, config.eps, config.attack_steps, step, seed)), y)
    adversarial = _most_divergent(plain, x, config.eps, config.attack_steps, step, seed)
    clean, attacked = model(torch.cat([x, adversarial])).float().chunk(2)
    return F.cross_entropy(clean, y) + config.beta * _divergence(clean, attacked)


def _divergence(clean: Tensor, attacked: Tensor) -> Tensor:
    return F.kl_div(attacked.log_softmax(1), clean.log_softmax(1), reduction="batchmean", log_target=True)


def _most_divergent(model: nn.Module, x: Tensor, eps: float, steps: int, step: float, seed: int) -> Tensor:
    """The inner maximization of TRADES, in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    x = x.detach()
    low, high = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
    noise = _TRADES_NOISE * torch.randn(x.shape, generator=generator, dtype=torch.float32)
    adversarial = (x + noise.to(x)).clamp(low, high)
    with frozen(model), torch.enable_grad():
        clean = model(x).detach()
        for _ in range(steps):
            adversarial.requires_grad_()
            gradient = torch.autograd.grad(_divergence(clean, model(adversarial)), adversarial)[0]
            adversarial = (adversarial.detach() + step * gradient.sign()).clamp(low, high)
    return adversarial
