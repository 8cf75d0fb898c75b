"""The critical-difference diagram: mean ranks on a line, and bars over methods that Nemenyi's test does not part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import scikit_posthocs
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.harness.plot import BLUE, DPI, GRAY, GREEN, ORANGE, PURPLE, save
from benchmarks.robustness.statistics.tables import of_claims

COLORS = (BLUE, ORANGE, GREEN, PURPLE, GRAY, "black")


def draw(document: Mapping[str, Any], path: Path, source: str) -> None:
    """The diagrams of the table that the paper's claims are of; of all comparisons, if the document has no claims."""
    save(figure_of(of_claims(document) if document["claims"] else document["comparisons"]), path, source)


def write(figure: Figure, path: Path) -> None:
    """Write a figure that no committed result file stands behind."""
    figure.savefig(path, dpi=DPI)
    plt.close(figure)


def figure_of(comparisons: Sequence[Mapping[str, Any]]) -> Figure:
    """One panel per comparison of a document, all on one scale; of the same methods, if colors are to tell them.

    Raises:
        ValueError: no comparison has a Nemenyi test, which needs three methods.
    """
    shown = [one for one in comparisons if one["nemenyi"]]
    if not shown:
        raise ValueError("comparisons: got none with a Nemenyi test; expected at least one of three methods or more")
    names = list(dict.fromkeys(method["name"] for one in shown for method in one["methods"]))
    colors = {name: COLORS[place % len(COLORS)] for place, name in enumerate(names)}
    height = 0.9 + 0.25 * len(names)
    figure, panels = plt.subplots(
        len(shown), 1, figsize=(9, height * len(shown)), squeeze=False, layout="constrained", sharex=True
    )
    for axes, one in zip(panels.flat, shown, strict=True):
        _panel(axes, one, colors)
        axes.set_xlim(0.5, len(names) + 0.5)
    figure.suptitle("Mean ranks, 1 is best; a bar joins what does not differ")
    return figure


def _panel(axes: Axes, comparison: Mapping[str, Any], colors: Mapping[str, str]) -> None:
    ranks = pd.Series({method["name"]: method["mean_rank"] for method in comparison["methods"]})
    # Of the verdicts, not of the p-values: the bars show what the tables say, to the last digit.
    same = pd.DataFrame(1.0, index=ranks.index, columns=ranks.index)
    for pair in comparison["nemenyi"]["pairs"]:
        if pair["differ"]:
            same.loc[pair["better"], pair["worse"]] = same.loc[pair["worse"], pair["better"]] = 0.0
    scikit_posthocs.critical_difference_diagram(
        ranks,
        same,
        alpha=comparison["alpha"],
        ax=axes,
        label_fmt_left="{label} ({rank:.2f})",
        label_fmt_right="({rank:.2f}) {label}",
        color_palette={name: colors[name] for name in ranks.index},
        cd=comparison["nemenyi"]["critical_difference"],
        label_props={"fontsize": 9},
    )
    axes.texts[-1].set_verticalalignment("bottom")  # The critical difference: off its line.
    axes.set_ylim(top=1.6)
    axes.tick_params(axis="x", direction="in", pad=-16, labelsize=8)
    title = (
        f"{comparison['subject']}; {comparison['basis']}: {comparison['blocks']} blocks, alpha {comparison['alpha']:g}"
    )
    axes.set_title(title, fontsize=9, loc="left")
