"""The critical-difference diagram: mean ranks on a line, and bars over methods that Nemenyi's test does not part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # No display is needed, nor looked for.

import pandas as pd
import scikit_posthocs
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from studies.drelu_paper.statistics.tables import of_claims

DPI = 130


def draw(document: Mapping[str, Any], path: Path) -> None:
    """The diagrams of the table that the paper's claims are of; of all comparisons, if the document has no claims."""
    write(figure_of(of_claims(document) if document["claims"] else document["comparisons"]), path)


def write(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=DPI)
    plt.close(figure)


def figure_of(comparisons: Sequence[Mapping[str, Any]]) -> Figure:
    """One panel per comparison of a document, all on one scale.

    Raises:
        ValueError: no comparison has a Nemenyi test, which needs three methods.
    """
    shown = [one for one in comparisons if one["nemenyi"]]
    if not shown:
        raise ValueError("comparisons: got none with a Nemenyi test; expected at least one of three methods or more")
    methods = max(len(one["methods"]) for one in shown)
    size = (9, (0.9 + 0.25 * methods) * len(shown))
    figure, panels = plt.subplots(len(shown), 1, figsize=size, squeeze=False, layout="constrained", sharex=True)
    for axes, one in zip(panels.flat, shown, strict=True):
        _panel(axes, one)
        axes.set_xlim(0.5, methods + 0.5)
    figure.suptitle("Mean ranks, 1 is best; a bar joins what does not differ")
    return figure


def _panel(axes: Axes, comparison: Mapping[str, Any]) -> None:
    ranks = pd.Series({method["name"]: method["mean_rank"] for method in comparison["methods"]})
    # Of the verdicts, not of the p-values: the bars show what the tables say, to the last digit.
    same = pd.DataFrame(1.0, index=ranks.index, columns=ranks.index)
    for pair in comparison["nemenyi"]["pairs"]:
        if pair["differ"]:
            same.loc[pair["better"], pair["worse"]] = same.loc[pair["worse"], pair["better"]] = 0.0
    scikit_posthocs.critical_difference_diagram(
        ranks, same, alpha=comparison["alpha"], ax=axes, label_fmt_left="{label} ({rank:.2f})",
        label_fmt_right="({rank:.2f}) {label}", cd=comparison["nemenyi"]["critical_difference"],
        label_props={"fontsize": 9},
    )  # fmt: skip
    axes.texts[-1].set_verticalalignment("bottom")  # The critical difference: off its line.
    axes.set_ylim(top=1.6)
    axes.tick_params(axis="x", direction="in", pad=-16, labelsize=8)
    subject = f"{comparison['subject']}; {comparison['basis']}"
    axes.set_title(f"{subject}: {comparison['blocks']} blocks, alpha {comparison['alpha']:g}", fontsize=9, loc="left")
