"""How much a training step keeps for backward as a network deepens: `python -m benchmarks.depth --help`.

Counted, not sampled: hooks on saved tensors see every tensor that the forward pass keeps, and each storage counts once,
whole; parameters, caps and the network's input are left out. Two chains of so many blocks of a linear layer and an
activation, on 64 x 256 numbers in float32 with a cap per channel:

=========  ==================  ==============================================================================
chain      block               who else keeps what
=========  ==================  ==============================================================================
plain      f(linear(h))        the next linear layer keeps y, nobody needs x
residual   h + f(linear(h))    the next linear layer keeps the sum, nobody needs x or y
=========  ==================  ==============================================================================
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor, nn

from benchmarks.harness import implementations as c
from benchmarks.harness import machine as results
from benchmarks.harness.entry import exit_with
from benchmarks.running import run_cases
from dreluop._internal.text_table import text_table

FILE_NAME = "memory.json"
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


class Row(TypedDict):
    chain: str
    implementation: str
    depth: int
    kept_bytes: int
    x_bytes: int


class Document(TypedDict):
    """A run; there are no times in it, so the device matters little."""

    schema: int
    complete: bool
    date: str
    device: results.Device
    versions: dict[str, str]
    commit: results.Commit | None
    failures: list[str]
    rows: list[Row]


def new_document() -> Document:
    return {
        "schema": results.SCHEMA,
        "complete": False,
        "date": results.now(),
        "device": results.describe_device(torch.device("cpu")),
        "versions": results.versions(),
        "commit": results.commit(),
        "failures": [],
        "rows": [],
    }


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


def row_of(chain: str, implementation: str, depth: int) -> Row:
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
    kept = kept_bytes(forward, parts)
    return {"chain": chain, "implementation": implementation, "depth": depth, "kept_bytes": kept, "x_bytes": x_bytes}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.depth", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder for the result; default: benchmarks/results/<device>")
    options = parser.parse_args(arguments)
    document = new_document()
    folder = options.out or results.default_path(document["device"]).parent
    cases = [(chain, implementation) for chain in CHAINS for implementation in ACTIVATIONS]
    mask = run_cases(
        document,
        cases,
        lambda case: ([row_of(*case, depth) for depth in DEPTHS], []),
        folder / FILE_NAME,
        name=", ".join,
    )
    print(table(document))
    print(f"written: {folder / FILE_NAME}")
    return mask


def table(document: Document) -> str:
    """What one more block keeps, in parts of x."""
    rows = [
        (chain, implementation, f"{per_block(document, chain, implementation):.3f}")
        for chain, implementation in _kinds(document)
    ]
    return text_table(("chain", "activation", "kept per block / x"), rows)


def _kinds(document: Document) -> list[tuple[str, str]]:
    return list(dict.fromkeys((row["chain"], row["implementation"]) for row in document["rows"]))


def per_block(document: Document, chain: str, implementation: str) -> float:
    """Bytes kept for one more block, in parts of x: the slope between the two deepest networks."""
    *_, before, last = [
        row for row in document["rows"] if (row["chain"], row["implementation"]) == (chain, implementation)
    ]
    kept = last["kept_bytes"] - before["kept_bytes"]
    return kept / (last["depth"] - before["depth"]) / last["x_bytes"]


if __name__ == "__main__":
    exit_with(main)
