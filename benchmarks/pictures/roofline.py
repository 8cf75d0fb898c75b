"""The share of the floor's bandwidth that each implementation reaches, as bars; of a processor or of a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib import pyplot as plt
from matplotlib.ticker import PercentFormatter

from benchmarks.gpu.suite import is_plain_and_large
from benchmarks.gpu.targets import TARGETS
from benchmarks.harness import implementations as c
from benchmarks.harness.table import DTYPES
from benchmarks.kernels.suite import BACKWARD, FORWARD, LARGE
from benchmarks.pictures.drawing import COLORS, save
from benchmarks.pictures.source import Source

BAR = 0.17  # of the space between two inputs


class Share(NamedTuple):
    case: str
    dtype: str
    pass_: str
    implementation: str
    share: float


def draw(document: dict[str, Any], path: Path, source: Source) -> None:
    """Forward and backward side by side, one group of bars per large input."""
    of_gpu = document["device"].get("type") == "cuda"
    shares = list(_of_gpu(document) if of_gpu else _of_processor(document))
    inputs = list(dict.fromkeys((share.case, share.dtype) for share in shares))
    height = 1.2 + 0.55 * max(len(inputs), 3)
    figure, sides = plt.subplots(1, 2, figsize=(13, height), sharey=True, layout="constrained")
    present = [name for name in COLORS if any(share.implementation == name for share in shares)]
    for axes, pass_ in zip(sides, (FORWARD, BACKWARD), strict=True):
        for place, name in enumerate(present):
            found = {(s.case, s.dtype): s.share for s in shares if (s.pass_, s.implementation) == (pass_, name)}
            places = [
                index + (place - (len(present) - 1) / 2) * BAR for index, key in enumerate(inputs) if key in found
            ]
            axes.barh(places, [found[key] for key in inputs if key in found], BAR, color=COLORS[name], label=name)
        axes.axvline(1, color="black", linewidth=1, label="copy" if of_gpu else "clone")
        for target in TARGETS if of_gpu else ():
            if (target.pass_, target.against) == (pass_, c.COPY):
                axes.axvline(
                    target.limit, color="black", linewidth=1, linestyle="--", label=f"target {target.limit:.0%}"
                )
        axes.set(title=pass_, xlabel=f"share of a {'copy' if of_gpu else 'clone'}'s bandwidth")
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.legend(loc="lower right", fontsize=8)
    sides[0].set_yticks(range(len(inputs)), [f"{case}, {DTYPES[dtype]}" for case, dtype in inputs], fontsize=8)
    sides[0].invert_yaxis()
    threads = "" if of_gpu else f", {document['threads']} threads"
    figure.suptitle(f"{document['device']['name']}{threads}, {document['date'][:10]}, x of 64 MB and more")
    save(figure, path, source)


def _of_gpu(document: dict[str, Any]) -> Iterator[Share]:
    for row in document["rows"]:
        if is_plain_and_large(row):
            yield Share(row["case"], row["dtype"], row["pass"], row["implementation"], row["fraction_of_copy"])


def _of_processor(document: dict[str, Any]) -> Iterator[Share]:
    """There the floor of both passes is a clone, which reads and writes x once."""
    for row in document["rows"]:
        if row["x_bytes"] >= LARGE and row["threads"] == document["threads"] and row["floor"] == c.CLONE:
            share = row["min_bytes"] / row["ms"] / (2 * row["x_bytes"] / row["floor_ms"])
            yield Share(row["case"], row["dtype"], row["pass"], row["implementation"], share)
