"""The picture of a GPU benchmark: the share of the copy's bandwidth, as bars beside the targets."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # No display is needed, nor looked for.

from matplotlib import pyplot as plt

from benchmarks.gpu.document import Document
from benchmarks.gpu.suite import Row, is_plain_and_large
from benchmarks.gpu.tables import copy_bandwidth
from benchmarks.gpu.targets import TARGETS
from benchmarks.kernels import contenders as c
from benchmarks.kernels.suite import BACKWARD, FORWARD
from benchmarks.palette import BLUE, GREEN, GREY, ORANGE, PURPLE
from benchmarks.tables import DTYPES

WHO = (
    (c.OURS.name, BLUE),
    (c.OURS_TRITON.name, GREEN),
    (c.COMPILED.name, ORANGE),
    (c.CLAMP.name, PURPLE),
    (c.RELU_MINIMUM.name, GREY),
)
BAR = 0.17  # of the space between two inputs
DPI = 130


def draw(document: Document, path: Path) -> None:
    """Forward and backward side by side, one group of bars per large input."""
    rows = [row for row in document["rows"] if is_plain_and_large(row)]
    inputs = list(dict.fromkeys((row["case"], row["dtype"]) for row in rows))
    height = 0.8 + 0.55 * max(len(inputs), 3)
    figure, sides = plt.subplots(1, 2, figsize=(13, height), sharey=True, layout="constrained")
    for axes, pass_ in zip(sides, (FORWARD, BACKWARD), strict=True):
        for place, (name, colour) in enumerate(WHO):
            found = _fractions(rows, pass_, name)
            places = [index + (place - (len(WHO) - 1) / 2) * BAR for index, key in enumerate(inputs) if key in found]
            axes.barh(places, [found[key] for key in inputs if key in found], BAR, color=colour, label=name)
        for target in TARGETS:
            if (target.pass_, target.against) == (pass_, c.COPY):
                axes.axvline(
                    target.limit, color="black", linewidth=1, linestyle="--", label=f"target {target.limit:.0%}"
                )
        axes.set(title=pass_, xlabel="share of the copy's bandwidth")
        axes.xaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1))
        axes.legend(loc="lower right", fontsize=8)
    sides[0].set_yticks(range(len(inputs)), [f"{case}, {DTYPES[dtype]}" for case, dtype in inputs], fontsize=8)
    sides[0].invert_yaxis()
    figure.suptitle(f"{document['device']['name']}, {copy_bandwidth(document)}, {document['date'][:10]}")
    figure.savefig(path, dpi=DPI)
    plt.close(figure)


def _fractions(rows: list[Row], pass_: str, contender: str) -> dict[tuple[str, str], float]:
    return {
        (row["case"], row["dtype"]): row["fraction_of_copy"]
        for row in rows
        if row["pass"] == pass_ and row["contender"] == contender
    }
