"""What all pictures share: matplotlib without a display, colors, and how one is saved."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # No display is needed, nor looked for.

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from benchmarks.harness import implementations as c

DPI = 130
# Okabe and Ito's colors: distinguished by color-blind readers too.
BLUE, ORANGE, GREEN, PURPLE, GRAY = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#777777"
COLORS = {
    c.OURS.name: BLUE,
    c.OURS_TRITON.name: GREEN,
    c.COMPILED.name: ORANGE,
    c.CLAMP.name: PURPLE,
    c.RELU_MINIMUM.name: GRAY,
}


def save(figure: Figure, path: Path, source: str = "") -> None:
    """Write the picture, with the file below ``benchmarks/results`` that it shows in small print."""
    if source:
        figure.supxlabel(f"source: benchmarks/results/{source}", fontsize=7, color=GRAY)
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
