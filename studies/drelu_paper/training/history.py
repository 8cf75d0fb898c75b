"""What is kept of every epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from dreluop.adaptive.attacks import frozen, input_gradient
from studies.drelu_paper.training.objectives import caps_of, penalty

# A gradient keeps what every layer gave: of a ResNet far more than the forward pass takes.
GRADIENT_BATCH = 100


@dataclass(frozen=True)
class EpochRecord:
    """State after an epoch; record 0 is the state before the first step.

    Attributes:
        train_loss: mean over the epoch's samples of the training loss; NaN in record 0.
        validation_loss: the total, loss (1).
        validation_accuracy, validation_zero_gradient: shares in [0, 1].
        cap_mean, cap_min, cap_max: over all caps; None for a model without caps.
    """

    train_loss: float
    validation_loss: float
    validation_accuracy: float
    validation_zero_gradient: float
    cap_mean: float | None = None
    cap_min: float | None = None
    cap_max: float | None = None

    def __str__(self) -> str:
        caps = "" if self.cap_mean is None else f", mean cap {self.cap_mean:.3f}"
        return f"loss {self.train_loss:.3f}, validation accuracy {self.validation_accuracy:.1%}{caps}"


@dataclass
class History:
    """One record per epoch, the untrained state first; wall and processor seconds of all epochs, with validation."""

    records: list[EpochRecord] = field(default_factory=list)
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def column(self, name: str) -> list[Any]:
        """One attribute of every record, record 0 first."""
        return [getattr(record, name) for record in self.records]


def record_of(
    model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]], balancer: float, train_loss: float
) -> EpochRecord:
    """The model's state now, on validation batches of its device."""
    loss, right, masked, samples = 0.0, 0, 0, 0
    with frozen(model):
        for x, y in batches:
            with torch.no_grad():
                logits = model(x)
            loss += float(F.cross_entropy(logits, y, reduction="sum"))
            right += int((logits.argmax(1) == y).sum())
            for part in zip(x.split(GRADIENT_BATCH), y.split(GRADIENT_BATCH), strict=True):
                masked += int((input_gradient(model, *part).flatten(1) == 0).all(1).sum())
            samples += len(x)
    values = torch.cat([cap.detach().flatten() for cap in caps_of(model)] or [torch.empty(0)])
    of_caps = (float(values.mean()), float(values.min()), float(values.max())) if len(values) else ()
    total = loss / samples + float(penalty(model, balancer).detach())
    return EpochRecord(train_loss, total, right / samples, masked / samples, *of_caps)
