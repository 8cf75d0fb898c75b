"""``torchrun --nproc-per-node 2 -m examples.distributed_fsdp2``: the demo's network on several processes, and on one.

Every process trains its part of each batch under DDP or FSDP2, and beside it the same network on whole batches alone.
In float64, where sums in another order differ by nothing that could hide a wrong gradient.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F  # noqa: N812
from torch.nn.parallel import DistributedDataParallel

from benchmarks.harness.entry import exit_with
from dreluop import cap_penalty
from dreluop.distributed import full_tensor
from dreluop.surgery import calibrate_caps
from studies.drelu_paper.data import Split, load_digits
from studies.drelu_paper.models import dense_drelu
from studies.drelu_paper.training import CAP_FLOOR, TrainingConfig, caps_of

ENGINES = ("ddp", "fsdp2")
SEED = 0
STEPS, QUICK_STEPS = 100, 3
REPORTS = 5
BATCH_SIZE = 64
CALIBRATION_SAMPLES = 512
# Small beside the loss: calibrated at once, without the demo's warm-up, the caps have more to learn before they fall.
BALANCER = 0.01
# Of the largest magnitude. A penalty that is counted once too often is off by far more than 1e-3.
TOLERANCE = 1e-9


@dataclass
class Run:
    """A network and its optimizer."""

    model: nn.Module
    optimizer: torch.optim.Optimizer

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """One step of Adam on loss (1) of the paper; returns the loss."""
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(x), y) + full_tensor(cap_penalty(self.model, BALANCER))
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            for cap in caps_of(self.model):
                cap.clamp_(min=CAP_FLOOR)
        return loss.detach()

    def gradients(self) -> list[Tensor]:
        return [full_tensor(parameter.grad) for parameter in self.model.parameters()]

    def parameters(self) -> list[Tensor]:
        return [full_tensor(parameter.detach()) for parameter in self.model.parameters()]


def main(arguments: list[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    steps = options.steps or (QUICK_STEPS if options.quick else STEPS)
    dist.init_process_group("gloo")
    try:
        different = [engine for engine in options.engine if not compare(engine, steps)]
    finally:
        dist.destroy_process_group()
    if different:
        sys.exit(f"{' and '.join(different)}: NOT what one process gives")


def compare(engine: str, steps: int) -> bool:
    """Train both ways and print how far they are apart; whether that is within ``TOLERANCE``."""
    torch.set_num_threads(1)
    ranks, rank = dist.get_world_size(), dist.get_rank()
    if BATCH_SIZE % ranks:
        raise ValueError(f"processes: got {ranks}; expected a divisor of the batch size, {BATCH_SIZE}")
    digits = load_digits()
    training = Split(digits.train.x.double(), digits.train.y)
    network = dense_drelu(SEED).double()
    calibrate_caps(network, [training.x[:CALIBRATION_SAMPLES]], progress=False)
    alone, together = _run(copy.deepcopy(network)), _run(_distributed(network, engine))

    _print(f"{engine}, {ranks} processes, {steps} steps of {BATCH_SIZE} digits; beside it, one process")
    gradient = 0.0
    for step, batch in enumerate(_batches(len(training.x), steps)):
        own = batch.chunk(ranks)[rank]
        loss, loss_alone = together.step(training.x[own], training.y[own]), alone.step(*(t[batch] for t in training))
        # Every process has the mean over its own digits.
        dist.all_reduce(loss)
        gradient = max(gradient, _deviation(together.gradients(), alone.gradients()))
        if step == 0 or (step + 1) % max(1, steps // REPORTS) == 0:
            _print(f"step {step + 1:4}  loss {loss.item() / ranks:.10f}  one process {loss_alone.item():.10f}")
    parameter = _deviation(together.parameters(), alone.parameters())
    accuracy = _accuracy(together.model, digits.test)
    _print(
        f"test accuracy {accuracy:.1%}, mean cap {float(full_tensor(caps_of(together.model)[0].detach()).mean()):.3f}"
    )
    _print(f"largest deviation from one process, relative: gradient {gradient:.1e}, parameters {parameter:.1e}")
    same = gradient <= TOLERANCE and parameter <= TOLERANCE
    if same:
        _print(f"{engine}: the same as one process (within {TOLERANCE:g})")
    return same


def _distributed(network: nn.Module, engine: str) -> nn.Module:
    model = copy.deepcopy(network)
    if engine == "ddp":
        return DistributedDataParallel(model)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for module in (*model.body, model.head, model.activation):  # type: ignore[misc]
        if any(True for _ in module.parameters()):
            fully_shard(module, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def _run(model: nn.Module) -> Run:
    caps = caps_of(model)
    others = [parameter for parameter in model.parameters() if all(parameter is not cap for cap in caps)]
    config = TrainingConfig()
    groups = [{"params": others, "lr": config.lr}, {"params": caps, "lr": config.cap_lr}]
    return Run(model, torch.optim.Adam(groups))


def _batches(samples: int, steps: int) -> Iterator[Tensor]:
    order = torch.Generator().manual_seed(SEED)
    for _ in range(steps):
        yield torch.randperm(samples, generator=order)[:BATCH_SIZE]


def _deviation(got: Iterable[Tensor], want: Iterable[Tensor]) -> float:
    """The largest difference over all tensors, each relative to its largest magnitude."""
    return max(
        float((one - other).abs().max() / other.abs().max().clamp(min=torch.finfo(other.dtype).tiny))
        for one, other in zip(got, want, strict=True)
    )


@torch.no_grad()
def _accuracy(model: nn.Module, split: Split) -> float:
    return float((model(split.x.double()).argmax(1) == split.y).double().mean())


def _print(line: str) -> None:
    if dist.get_rank() == 0:
        print(line, flush=True)


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"got {number}; expected at least 1")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="torchrun -m examples.distributed_fsdp2", description=__doc__)
    parser.add_argument("--engine", nargs="+", choices=ENGINES, default=["ddp"], help="torch's engine (default ddp)")
    parser.add_argument("--steps", type=_positive, help=f"of training (default {STEPS})")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_STEPS} steps")
    return parser


if __name__ == "__main__":
    exit_with(main)
