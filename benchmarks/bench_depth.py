"""How much a training step keeps for backward as a network deepens: `python -m benchmarks memory --help`.

Counted, not sampled: hooks on saved tensors see every tensor that the forward pass keeps, and each storage counts once,
whole; parameters, caps and the network's input are left out. Two chains of so many blocks of a linear layer and an
activation, on 64 x 256 numbers in float32 with a cap per channel:

=========  ==================  ==============================================================================
chain      block               what else is saved
=========  ==================  ==============================================================================
plain      f(linear(h))        the next linear layer saves y, nothing needs x
residual   h + f(linear(h))    the next linear layer saves the sum, nothing needs x or y
=========  ==================  ==============================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness import implementations as c
from benchmarks.harness.cli import Bench, Run
from benchmarks.harness.records import Named, Record
from benchmarks.harness.table import Column, Table, facts, pivot

CHAINS = ("plain", "residual")
DEPTHS = (1, 2, 4, 8, 16, 32)
BATCH, WIDTH = 64, 256
RELU, IN_PLACE = "relu, no cap", "dreluop, in place"


def _relu(x: Tensor, cap: Tensor, dim: int = 1) -> Tensor:
    return torch.relu(x)


ACTIVATIONS: dict[str, c.Activation] = {
    RELU: _relu,
    c.RELU_MINIMUM.name: c.relu_minimum,
    c.CLAMP.name: c.clamp_tensor,
    c.OURS.name: c.ours,
    IN_PLACE: c.ours_,
    c.OURS_MASK.name: c.ours_mask,
}


def cases(kind: str, settings: Mapping[str, Any]) -> Sequence[Named]:
    return [Named(name, tuple(ACTIVATIONS)) for name in CHAINS]


def run(chain: Named, with_: Run) -> list[dict[str, Any]]:
    return [row_of(chain.label, name, depth) for name in chain.implementations for depth in DEPTHS]


def kept_bytes(forward: Callable[[], Tensor], parts: Sequence[Tensor]) -> int:
    """Bytes of the storages that a forward pass keeps for backward, those of ``parts`` left out."""
    found: dict[int, int] = {}
    alive: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
        # Else another tensor could get the same address.
        alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = forward()
    for part in parts:
        found.pop(part.untyped_storage().data_ptr(), None)
    del y
    return sum(found.values())


def row_of(chain: str, implementation: str, depth: int) -> dict[str, Any]:
    """Measure one network."""
    generator = torch.Generator().manual_seed(0)
    layers = [nn.Linear(WIDTH, WIDTH) for _ in range(depth)]
    caps = [nn.Parameter(torch.ones(WIDTH)) for _ in range(depth)]
    x = torch.randn(BATCH, WIDTH, generator=generator)
    activation = ACTIVATIONS[implementation]

    def forward() -> Tensor:
        h = x
        for layer, cap in zip(layers, caps, strict=True):
            y = activation(layer(h), cap, 1)
            h = h + y if chain == "residual" else y
        return h

    parts = [x, *caps, *(parameter for layer in layers for parameter in layer.parameters())]
    x_bytes = x.numel() * x.element_size()
    return {
        "implementation": implementation,
        "depth": depth,
        "kept_bytes": kept_bytes(forward, parts),
        "x_bytes": x_bytes,
    }


def table(record: Record) -> Table:
    """What one more block keeps, in parts of x: the slope between the two deepest networks."""
    frame = record.frame().sort_values("depth", kind="stable")
    before = frame.groupby(["case", "implementation"])[["depth", "kept_bytes"]].shift()
    kept = (frame["kept_bytes"] - before["kept_bytes"]) / (frame["depth"] - before["depth"])
    columns = (
        *(Column("chain", "case"), Column("activation", "implementation")),
        Column("kept per block / x", "per_block", "{:.3f}", {"depth": DEPTHS[-1]}),
    )
    frame = frame.assign(per_block=kept / frame["x_bytes"])
    return pivot("Saved for backward", frame, ["case", "implementation"], columns)


def headline(record: Record) -> str:
    return facts(record, BENCH.missing(record))


BENCH = Bench(
    "memory", "Count the bytes that a training step keeps for backward, over the depth of a network.", cases, run,
    ("implementation", "depth"), headline, lambda record: [table(record)], devices=("cpu",),
)  # fmt: skip
BENCHES = {BENCH.name: BENCH}
