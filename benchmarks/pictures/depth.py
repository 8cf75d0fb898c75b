"""Bytes kept for backward over the number of layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt

from benchmarks.depth import CHAINS, IN_PLACE, RELU
from benchmarks.harness import implementations as c
from benchmarks.harness.palette import GREEN, ORANGE
from benchmarks.pictures.drawing import COLORS, save
from benchmarks.pictures.source import Source

# Some lie on one another: wide ones under narrow ones.
LINES = {
    c.RELU_MINIMUM.name: (COLORS[c.RELU_MINIMUM.name], "-", 2),
    c.OURS.name: (COLORS[c.OURS.name], "-", 6),
    IN_PLACE: (GREEN, "--", 4),
    c.CLAMP.name: (COLORS[c.CLAMP.name], "-", 1.5),
    RELU: ("black", ":", 1.5),
    c.OURS_MASK.name: (ORANGE, "-", 2),
}
BLOCKS = {"plain": "h = f(linear(h))", "residual": "h = h + f(linear(h))"}


def draw(document: dict[str, Any], path: Path, source: Source) -> None:
    """One panel per chain."""
    figure, sides = plt.subplots(1, 2, figsize=(11, 4.6), sharey=True, layout="constrained")
    for axes, chain in zip(sides, CHAINS, strict=True):
        for name, (color, dashes, width) in LINES.items():
            rows = [row for row in document["rows"] if (row["chain"], row["implementation"]) == (chain, name)]
            depths, kept = [row["depth"] for row in rows], [row["kept_bytes"] / row["x_bytes"] for row in rows]
            axes.plot(depths, kept, dashes, color=color, linewidth=width, label=name)
        axes.set(title=BLOCKS[chain], xlabel="blocks")
        axes.grid(alpha=0.3)
    sides[0].set_ylabel("kept for backward, in activations")
    sides[0].legend(fontsize=8)
    figure.suptitle("Memory that the forward pass keeps, parameters left out")
    save(figure, path, source)
