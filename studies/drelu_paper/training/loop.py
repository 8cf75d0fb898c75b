"""The loop: Adam with the caps in a parameter group of their own, plateau, early stopping, a checkpoint per epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from dreluop import param_groups, project_caps
from studies.drelu_paper.data import Split
from studies.drelu_paper.training import checkpoint
from studies.drelu_paper.training.config import TrainingConfig
from studies.drelu_paper.training.history import EpochRecord, History, record_of
from studies.drelu_paper.training.objectives import CAP_FLOOR, caps_of, penalty, training_loss
from studies.drelu_paper.training.parallel import Processes

# What a checkpoint holds.
STORED = (
    "config", "model", "optimizer", "scheduler", "scaler", "order", "history", "best", "epochs_since_best",
)  # fmt: skip
# Of validation; attacks of training have the batches of training.
VALIDATION_BATCH = 500


class Samples(Protocol):
    """What can be trained on, such as ``data.Part``."""

    def __len__(self) -> int: ...

    def batches(
        self, batch_size: int, generator: torch.Generator | None = None, shuffle: bool = False
    ) -> Iterable[tuple[Tensor, Tensor]]:
        """One pass: inputs in [0, 1] and labels; shuffled in an order drawn from the generator."""


@dataclass(frozen=True)
class InMemory:
    """A split as ``Samples``; its samples may have any shape."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def batches(
        self, batch_size: int, generator: torch.Generator | None = None, shuffle: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        n = len(self.y)
        order = torch.randperm(n, generator=generator) if shuffle else torch.arange(n)
        for batch in order.to(self.x.device).split(batch_size):
            yield self.x[batch], self.y[batch]


@dataclass
class _State:
    """Everything that a checkpoint holds, beside model and optimizer."""

    order: torch.Generator
    history: History = field(default_factory=History)
    best: float = math.inf
    epochs_since_best: int = 0


def train(
    model: nn.Module,
    training: Samples | Split,
    validation: Samples | Split,
    config: TrainingConfig,
    description: str = "train",
    *,
    file: Path | None = None,
    processes: Processes | None = None,
    progress: bool = True,
) -> History:
    """Train the model in place, on its device, with Adam; the last weights are kept, as in the paper.

    ReduceLROnPlateau and early stopping watch the total validation loss. With the cross-entropy alone training would
    stop long before the caps have fallen. After each step caps below ``CAP_FLOOR`` are set to it.

    Args:
        description: label of the progress bar.
        file: a checkpoint, written after every epoch. If it exists, training goes on from it, to the same numbers as
            without the break. With several processes the first one writes it, and all must see it.
        processes: of torchrun; None is one.

    Returns:
        The history, at most ``config.epochs + 1`` records; its times go on over breaks.

    Raises:
        RuntimeError: the loss is not finite.
        ValueError: the file is of another configuration, or damaged; the message names it.
    """
    training, validation = (InMemory(*part) if isinstance(part, Split) else part for part in (training, validation))
    trainer = _Trainer(model, training, validation, config, processes or Processes(), file)
    bar = tqdm(
        desc=description, unit="epoch", total=config.epochs, initial=len(trainer.state.history.records) - 1,
        dynamic_ncols=True, disable=not progress or trainer.processes.rank > 0,
    )  # fmt: skip
    with bar:
        while not trainer.is_done():
            record = trainer.epoch()
            bar.set_postfix_str(str(record), refresh=False)
            bar.update()
    return trainer.state.history


class _Trainer:
    def __init__(
        self,
        model: nn.Module,
        training: Samples,
        validation: Samples,
        config: TrainingConfig,
        processes: Processes,
        file: Path | None,
    ) -> None:
        self.model, self.training, self.config = model, training, config
        self.processes, self.file = processes, file
        self.device = next(model.parameters()).device
        self.caps = caps_of(model)
        groups = param_groups(model, config.lr, config.cap_lr) if self.caps else model.parameters()
        self.optimizer = torch.optim.Adam(groups, lr=config.lr)
        self.scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self.optimizer, factor=config.plateau_factor, patience=config.plateau_patience
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.amp == "float16")
        self.called = processes.wrap(torch.compile(model) if config.compile else model, self.device)
        self.watched = [
            (x.to(self.device), y.to(self.device)) for x, y in validation.batches(VALIDATION_BATCH)
        ]  # Small beside a training set, and asked for after every epoch.
        self.state = _State(torch.Generator().manual_seed(config.seed))
        if file is not None and file.exists():
            self._restore(file)
        else:
            self.state.history.records.append(self._record(math.nan))

    def is_done(self) -> bool:
        patience = self.config.stop_patience
        stopped = patience is not None and self.state.epochs_since_best >= patience
        return stopped or len(self.state.history.records) > self.config.epochs

    def epoch(self) -> EpochRecord:
        state = self.state
        began, began_cpu = time.perf_counter(), time.process_time()
        record = self._record(self._pass())
        state.history.records.append(record)
        self.scheduler.step(record.validation_loss)
        improved = record.validation_loss < state.best
        state.best, state.epochs_since_best = (
            (record.validation_loss, 0) if improved else (state.best, state.epochs_since_best + 1)
        )
        state.history.seconds += time.perf_counter() - began
        state.history.cpu_seconds += time.process_time() - began_cpu
        if self.file is not None and self.processes.rank == 0:
            self._save(self.file)
        return record

    def _record(self, train_loss: float) -> EpochRecord:
        # On CPUs each process has running statistics of its own; one that stopped alone would leave the rest waiting.
        return self.processes.of_first(record_of(self.model, self.watched, self.config.balancer, train_loss))

    def _pass(self) -> float:
        self.model.train()
        config, epoch = self.config, len(self.state.history.records)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for step, (x, y) in enumerate(self.training.batches(config.batch_size, self.state.order, shuffle=True)):
            seed = hash_seed(config.seed, epoch, step, self.processes.rank)
            loss = self._step(*self.processes.share(x, y, self.device), seed)
            total += loss.double() * len(x)
        # Each process holds its share of every batch's loss, times world.
        mean = float(self.processes.total(total)) / self.processes.world / len(self.training)
        if not math.isfinite(mean):
            raise RuntimeError(f"the training loss is {mean}; lower the learning rates or the balancer")
        return mean

    def _step(self, x: Tensor, y: Tensor, weight: float, seed: int) -> Tensor:
        config = self.config
        self.optimizer.zero_grad()
        with self._autocast():
            loss = training_loss(self.called, self.model, x, y, config, seed)
        if self.processes.world > 1:
            loss = loss * weight
        if self.caps:
            loss = loss + penalty(self.model, config.balancer)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.caps:
            project_caps(self.caps, CAP_FLOOR)
        return loss.detach()

    def _autocast(self) -> Any:
        if self.config.amp == "off":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=getattr(torch, self.config.amp))

    def _parts(self) -> dict[str, Any]:
        """What has a state of its own."""
        return {name: getattr(self, name) for name in ("model", "optimizer", "scheduler", "scaler")}

    def _save(self, file: Path) -> None:
        state = self.state
        stored = {
            "config": repr(self.config),
            **{name: part.state_dict() for name, part in self._parts().items()},
            "order": state.order.get_state(),
            "history": checkpoint.history_state(state.history),
            "best": state.best,
            "epochs_since_best": state.epochs_since_best,
        }
        checkpoint.save(stored, file)

    def _restore(self, file: Path) -> None:
        # On the CPU: Adam counts steps there, and on a GPU each step would wait for its counts.
        stored = checkpoint.load(file, STORED)
        if stored["config"] != repr(self.config):
            raise ValueError(f"file: got a checkpoint of {stored['config']} in {file}; expected one of {self.config!r}")
        with checkpoint.reading(file):
            for name, part in self._parts().items():
                part.load_state_dict(stored[name])
            self.state.order.set_state(stored["order"])
            self.state.history = checkpoint.history_of(stored["history"])
            self.state.best, self.state.epochs_since_best = stored["best"], stored["epochs_since_best"]


def hash_seed(*parts: int) -> int:
    """A seed for every step: the same after a break, another for every step, epoch and process."""
    result = 17
    for part in parts:
        result = (result * 1_000_003 + part) % 2**31
    return result
