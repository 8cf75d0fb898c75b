"""Run the study: `python -m studies.bit_flips --help`. Interrupted, the same command goes on."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.harness import machine, records
from dreluop.caps.batches import with_bar
from dreluop.faults import fault_curve
from studies.bit_flips import report
from studies.bit_flips.networks import NETWORKS, Recipe, trained
from studies.bit_flips.variants import ACTIVATIONS, LEARNED, RELU, VARIANTS
from studies.drelu_paper.data import load_digits

WORK = Path("build/bit_flips")
SEEDS, TRIALS, INPUTS, EPOCHS = 3, 50, 500, {"CNN": 6, "ResNet": 6}
BALANCER = 1e-3
RATES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
# Where bits flip, and in what dtype; int8 is how the weights are stored, in a network of float32.
KINDS: dict[str, tuple[str, torch.dtype, torch.dtype | None]] = {
    "weights, float32": ("weights", torch.float32, None),
    "weights, bfloat16": ("weights", torch.bfloat16, None),
    "weights, float16": ("weights", torch.float16, None),
    "weights, int8": ("weights", torch.float32, torch.int8),
    "before activations": ("inputs_of_activations", torch.float32, None),
    "after activations": ("activations", torch.float32, None),
    "caps": ("caps", torch.float32, None),
}


@dataclass(frozen=True)
class Point:
    """One curve: a network, a seed, a variant and a kind of faults."""

    network: str
    seed: int
    variant: str
    kind: str

    @property
    def label(self) -> str:
        return f"{self.network}, seed {self.seed}, {self.variant}, {self.kind}"


def points(networks: Sequence[str], seeds: int, variants: Sequence[str], kinds: Sequence[str]) -> list[Point]:
    return [
        Point(network, seed, variant, kind)
        for network in networks
        for seed in range(seeds)
        for variant in variants
        for kind in kinds
        # Without caps there are none to be hit; a check bit in a float is lost where weights are stored as int8.
        if not (kind == "caps" and variant in (RELU, "ReLU6", "FitAct"))
        and not (kind == "weights, int8" and variant.endswith("protect_weights"))
    ]


@lru_cache(maxsize=8)
def network_of(network: str, activation: str, seed: int) -> nn.Sequential:
    recipe = Recipe(EPOCHS[network], BALANCER if activation == LEARNED else 0.0)
    return trained(network, ACTIVATIONS[activation], recipe, load_digits()[0], seed)


def rows(point: Point, trials: int, inputs: int) -> Iterator[dict[str, Any]]:
    """A row for each rate; the trials are kept below ``WORK``, where an interrupted run finds them."""
    where, dtype, stored = KINDS[point.kind]
    variant = VARIANTS[point.variant]
    training, _, test = load_digits()[:3]
    subject = variant.of(network_of(point.network, variant.activation, point.seed), training.x, dtype)
    x, labels = test.x[:inputs], test.y[:inputs]
    found = fault_curve(
        subject.hit if where == "weights" else subject.model,
        lambda _: subject.logits(x),
        RATES,
        trials,
        labels=labels,
        where=where,  # type: ignore[arg-type]
        dtype=stored,
        path=WORK / f"{point.label}.jsonl".replace(" ", "_"),
        progress=False,
    )
    for row in found.to_dict("records"):
        yield {"seed": point.seed, "variant": point.variant, "kind": point.kind, "clean": found.attrs["clean"], **row}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m studies.bit_flips", description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seeds", type=int, default=SEEDS, help="networks of each kind")
    parser.add_argument("--trials", type=int, default=TRIALS, help="networks with faults at each rate")
    parser.add_argument("--inputs", type=int, default=INPUTS, help="test digits")
    parser.add_argument("--out", type=Path, help="folder for the record; default: benchmarks/results/<device>")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    device = machine.describe_device(torch.device("cpu"))
    settings = {"trials": options.trials, "seeds": options.seeds, "inputs": options.inputs}
    record = records.new_record("bit-flips", device, machine.versions(), **settings)
    todo = points(options.networks, options.seeds, options.variants, options.kinds)
    for point in with_bar(todo, None, unit="curve"):
        record.add(point.network, rows(point, options.trials, options.inputs), ("seed", "variant", "kind", "rate"))
    path = (options.out or machine.folder_of(device)) / report.FILE_NAME
    record.save(path)
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
