"""Training under loss (1) of the paper, with the caps in a parameter group of their own."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from tqdm import tqdm

from benchmarks.robustness.attacks import frozen, zero_gradient_share
from benchmarks.robustness.data import Split
from benchmarks.robustness.evaluation import accuracy
from dreluop import DReLU, cap_penalty, project_caps

# Positive, so that a cap that was driven down can still be raised by the loss: clamped at 0, with balancer 1, the whole
# head died within five epochs.
CAP_FLOOR = 1e-3


@dataclass(frozen=True)
class TrainingConfig:
    """How to train. The defaults are the paper's, but for cap_lr (its single rate, 1e-3, takes more steps).

    Attributes:
        epochs: at most this many passes over the training set.
        balancer: weight of ``sum m^2`` in loss (1).
        lr, cap_lr: Adam's learning rate for the weights and for the caps.
        batch_size: samples per step; a last, smaller batch is used too.
        plateau_factor, plateau_patience: of ReduceLROnPlateau on the total validation loss.
        stop_patience: epochs without a lower total validation loss before training stops; None: never.
        seed: of the order of the samples.
    """

    epochs: int = 2000
    balancer: float = 1.0
    lr: float = 1e-3
    cap_lr: float = 1e-2
    batch_size: int = 32
    plateau_factor: float = 0.5
    plateau_patience: int = 5
    stop_patience: int | None = 10
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}; expected at least 1")
        for name in ("lr", "cap_lr"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}: got {getattr(self, name)}; expected a finite number > 0")
        if self.stop_patience is not None and self.stop_patience < 1:
            raise ValueError(f"stop_patience: got {self.stop_patience}; expected at least 1, or None")


@dataclass(frozen=True)
class EpochRecord:
    """State after an epoch; record 0 is the state before the first step.

    Attributes:
        train_loss: mean over the epoch's samples of loss (1); NaN in record 0.
        validation_loss: the total, loss (1).
        validation_accuracy, validation_zero_gradient: shares in [0, 1].
        cap_mean, cap_min, cap_max: over all caps; None for a model without caps.
    """

    train_loss: float
    validation_loss: float
    validation_accuracy: float
    validation_zero_gradient: float
    cap_mean: float | None
    cap_min: float | None
    cap_max: float | None


@dataclass
class History:
    """One record per epoch, the untrained state first."""

    records: list[EpochRecord] = field(default_factory=list)

    def column(self, name: str) -> list[float]:
        """One attribute of every record, record 0 first."""
        return [getattr(record, name) for record in self.records]


def caps_of(model: nn.Module) -> list[nn.Parameter]:
    """The caps of the model's DReLU modules, each once."""
    return list({id(m.cap): m.cap for m in model.modules() if isinstance(m, DReLU)}.values())


def total_loss(model: nn.Module, x: Tensor, y: Tensor, balancer: float) -> Tensor:
    """Loss (1) of the paper: mean cross-entropy + balancer * sum m^2; without caps the cross-entropy alone."""
    loss = F.cross_entropy(model(x), y)
    caps = caps_of(model)
    return loss + cap_penalty(caps, balancer) if caps else loss


def train(
    model: nn.Module, training: Split, validation: Split, config: TrainingConfig, description: str = "train"
) -> History:
    """Train the model in place with Adam; the last weights are kept, as in the paper.

    ReduceLROnPlateau and early stopping watch the total validation loss. With the cross-entropy alone training would
    stop long before the caps have fallen. After each step caps below ``CAP_FLOOR`` are set to it.

    Args:
        model: on the device of the data; left in train mode.
        training, validation: inputs and labels.
        config: how to train.
        description: label of the progress bar.

    Returns:
        The history, at most ``config.epochs + 1`` records.

    Raises:
        RuntimeError: the loss is not finite.
    """
    optimizer = _optimizer(model, config)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=config.plateau_factor, patience=config.plateau_patience
    )
    order = torch.Generator().manual_seed(config.seed)
    history = History([_record(model, validation, config.balancer, math.nan)])
    best, epochs_since_best = math.inf, 0
    with tqdm(range(config.epochs), desc=description, unit="epoch", dynamic_ncols=True) as bar:
        for _ in bar:
            record = _record(model, validation, config.balancer, _epoch(model, optimizer, training, config, order))
            history.records.append(record)
            bar.set_postfix_str(_summary(record))
            scheduler.step(record.validation_loss)
            improved = record.validation_loss < best
            best, epochs_since_best = (record.validation_loss, 0) if improved else (best, epochs_since_best + 1)
            if config.stop_patience is not None and epochs_since_best >= config.stop_patience:
                break
    return history


def _optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Adam:
    caps = caps_of(model)
    cap_ids = {id(cap) for cap in caps}
    groups = [{"params": [p for p in model.parameters() if id(p) not in cap_ids], "lr": config.lr}]
    if caps:
        groups.append({"params": caps, "lr": config.cap_lr})
    return torch.optim.Adam(groups)


def _epoch(
    model: nn.Module, optimizer: torch.optim.Adam, split: Split, config: TrainingConfig, order: torch.Generator
) -> float:
    model.train()
    caps = caps_of(model)
    total = torch.zeros((), dtype=torch.float64, device=split.x.device)
    for batch in torch.randperm(len(split.x), generator=order).to(split.x.device).split(config.batch_size):
        optimizer.zero_grad()
        loss = total_loss(model, split.x[batch], split.y[batch], config.balancer)
        loss.backward()
        optimizer.step()
        total += loss.detach() * len(batch)
        if caps:
            project_caps(caps, CAP_FLOOR)
    mean = float(total) / len(split.x)
    if not math.isfinite(mean):
        raise RuntimeError(f"the training loss is {mean}; lower the learning rates or the balancer")
    return mean


def _record(model: nn.Module, validation: Split, balancer: float, train_loss: float) -> EpochRecord:
    with frozen(model), torch.no_grad():
        loss = float(total_loss(model, *validation, balancer))
    caps = torch.cat([cap.detach().flatten() for cap in caps_of(model)]) if caps_of(model) else None
    return EpochRecord(
        train_loss=train_loss,
        validation_loss=loss,
        validation_accuracy=accuracy(model, *validation),
        validation_zero_gradient=zero_gradient_share(model, *validation),
        cap_mean=None if caps is None else float(caps.mean()),
        cap_min=None if caps is None else float(caps.min()),
        cap_max=None if caps is None else float(caps.max()),
    )


def _summary(record: EpochRecord) -> str:
    text = f"loss {record.train_loss:.3f}, validation accuracy {record.validation_accuracy:.1%}"
    return text if record.cap_mean is None else f"{text}, mean cap {record.cap_mean:.3f}"
