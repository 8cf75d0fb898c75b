"""Models of which no attack along the gradient can ask anything as they are."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from dreluop.adaptive.attacks.checks import frozen


class _Connected(nn.Module):
    """The same values, with a gradient of zero to every input."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        return logits + 0 * x.sum().to(logits)


def attackable(model: nn.Module, x: Tensor) -> nn.Module:
    """The model, if its output is part of a graph; else, with a warning, the same with a zero gradient everywhere.

    Such outputs are those of a step function, ``(x > 0).float()``, and of a forward under ``no_grad``.

    Args:
        model: gives logits of shape (N, classes).
        x: inputs, of which one is enough.

    Raises:
        ValueError: the model, or a part of it, comes from torch.compile, or its output is not of this shape.
    """
    if any(hasattr(module, "_orig_mod") for module in model.modules()):
        raise ValueError("model: got one of torch.compile; expected the model that was compiled, its _orig_mod")
    with frozen(model), torch.enable_grad():
        x = x[:1].detach().requires_grad_()
        logits = model(x)
        if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] < 2:
            got = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"model: its output is {got}; expected logits of shape (N, classes), at least two classes")
        known = logits.requires_grad and torch.autograd.grad(logits.sum(), x, allow_unused=True)[0] is not None
    if known:
        return model
    warnings.warn(
        "the model's output has no gradient to its input: it counts as zero for every input, and attacks that follow "
        "it cannot move",
        stacklevel=2,
    )
    return _Connected(model)
