"""What one capped site of a network costs the host in a training step: `python -m benchmarks sites`.

A chain of 49 activations, as many as ResNet50 has, on an x so small that the kernels take no time: what is left is
Python, torch's dispatcher, autograd's engine and the optimizer. Each step is timed by its parts, on one thread by its
processor time; on a GPU, where kernels run beside the host, that is the host's time too.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import dreluop
from benchmarks.harness import machine, records
from benchmarks.harness.entry import exit_with
from benchmarks.harness.interleave import Budget, Timed, interleave, sample, threads
from benchmarks.harness.records import Record
from benchmarks.harness.table import MISSING, Table, software

FILE_NAME = "sites.jsonl"
SITES, CHANNELS, BATCH = 49, 64, 4
BALANCER = 0.1
# A learned cap gets the penalty by one of these.
NO_PENALTY, IN_LOSS, IN_OPTIMIZER = "", "cap_penalty", "weight decay"
PARTS = ("forward", "penalty", "backward", "optimizer", "zero_grad")
COUNTS = ("operators", "launches")


def _drelu() -> nn.Module:
    return dreluop.DReLU(CHANNELS, init=3.0)


# The activation, where its penalty is taken, and whether the caps are flattened.
Network = tuple[Callable[[], nn.Module], str, bool]
NETWORKS: dict[str, Network] = {
    "`nn.ReLU`": (nn.ReLU, NO_PENALTY, False),
    "`nn.PReLU(C)`": (functools.partial(nn.PReLU, CHANNELS), NO_PENALTY, False),
    "`DReLU(C)`": (_drelu, NO_PENALTY, False),
    "`DReLU(C)`, `cap_penalty(model)`": (_drelu, IN_LOSS, False),
    "`DReLU(C)`, `param_groups(balancer=)`": (_drelu, IN_OPTIMIZER, False),
    "`caps.flatten`": (_drelu, NO_PENALTY, True),
    "`caps.flatten`, `cap_penalty(model)`": (_drelu, IN_LOSS, True),
}


class Step:
    """A training step in its parts; each gets what the one before returned."""

    def __init__(self, network: Network, device: torch.device, sites: int) -> None:
        activation, self.penalty, is_flat = network
        torch.manual_seed(0)
        self.model = nn.Sequential(*(activation() for _ in range(sites))).to(device)
        if is_flat:
            dreluop.caps.flatten(self.model)
        # The same work for all: a parameter before the activations, so that a gradient goes through the first.
        self.scale = nn.Parameter(torch.ones(CHANNELS, device=device))
        self.x = torch.randn(BATCH, CHANNELS, device=device)
        groups: list[dict[str, Any]] = [{"params": list(self.model.parameters())}]
        if self.penalty == IN_OPTIMIZER:
            groups = dreluop.param_groups(self.model, lr=1e-9, balancer=BALANCER)
        groups.append({"params": [self.scale], "weight_decay": 0.0})
        self.optimizer = torch.optim.SGD([one for one in groups if one["params"]], lr=1e-9, momentum=0.9, foreach=True)

    def parts(self) -> tuple[Callable[[Any], Any], ...]:
        return (
            lambda _: self.model(self.x * self.scale).sum(),
            self._with_penalty,
            lambda loss: loss.backward(),
            lambda _: self.optimizer.step(),
            lambda _: self.optimizer.zero_grad(),
        )

    def _with_penalty(self, loss: Tensor) -> Tensor:
        return loss + dreluop.cap_penalty(self.model, BALANCER) if self.penalty == IN_LOSS else loss

    def run(self) -> None:
        value = None
        for part in self.parts():
            value = part(value)


def counts(step: Step, device: torch.device) -> dict[str, int]:
    """Operators that torch's profiler sees in one step, and kernels launched on a GPU."""
    step.run()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with profile(activities=activities, acc_events=True) as found:
        step.run()
    names = [event.name for event in found.events()]
    return {
        "operators": sum(name.startswith(("aten::", "dreluop::")) for name in names),
        "launches": sum(name.startswith(("cudaLaunch", "cuLaunch")) for name in names),
    }


def measure(device: torch.device, budget: Budget, sites: int = SITES) -> Iterator[dict[str, Any]]:
    steps = {name: Step(network, device, sites) for name, network in NETWORKS.items()}
    with threads(1):
        counted = {name: counts(step, device) for name, step in steps.items()}
        timed = [Timed(name, step.parts()) for name, step in steps.items()]
        found = interleave(timed, budget, sampler=functools.partial(sample, clock=time.thread_time_ns))
    for name, samples in found.items():
        row: dict[str, Any] = {"network": name, **samples.seconds().in_ms(), **counted[name]}
        for index, part in enumerate(PARTS):
            row[f"{part}_ms"] = samples.steps(slice(index, index + 1)).seconds().median * 1e3
        yield row


def table(record: Record) -> Table:
    """Microseconds of host time for one site, by the parts of a step."""
    shown = []
    for row in record.rows:
        sites = record.run["settings"]["sites"]
        us = [f"{row[key] * 1e3 / sites:.1f}" for key in ("ms", *(f"{part}_ms" for part in PARTS))]
        shown.append((row["key"]["network"], *us, *(f"{row[count]:,}" if row[count] else MISSING for count in COUNTS)))
    return Table("Host time of a step, of each of 49 sites", ("network", "a site, us", *PARTS, *COUNTS), shown)


def headline(record: Record) -> str:
    return f"{record.run['device']['name']}, one thread; {software(record)}; {record.when()}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks sites", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--seconds", type=float, default=5.0, help="for each network")
    parser.add_argument("--out", type=Path, help="folder for the record; default: benchmarks/results/<device>")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    described = machine.describe_device(device)
    record = records.new_record("sites", described, machine.versions(), sites=SITES, seconds=options.seconds)
    for row in measure(device, Budget(seconds=options.seconds, max_samples=1000, sample_seconds=0)):
        print(f"{row['network']:42} {row['ms']:7.3f} ms  " + " ".join(f"{p} {row[f'{p}_ms']:.3f}" for p in PARTS))
        record.add(row["network"], [row], ("network",))
    path = (options.out or machine.folder_of(described)) / FILE_NAME
    record.save(path)
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    exit_with(main)
