"""What all pictures share: matplotlib without a display, colors, and how one is saved."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # No display is needed, nor looked for.

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from benchmarks.harness import implementations as c
from benchmarks.harness.palette import BLUE, GRAY, GREEN, ORANGE, PURPLE
from benchmarks.pictures.source import KEYWORD, Source

DPI = 130
COLORS = {
    c.OURS.name: BLUE,
    c.OURS_TRITON.name: GREEN,
    c.COMPILED.name: ORANGE,
    c.CLAMP.name: PURPLE,
    c.RELU_MINIMUM.name: GRAY,
}


def save(figure: Figure, path: Path, source: Source) -> None:
    """Write the picture with its source, below it in small print and in the file."""
    figure.supxlabel(f"source: benchmarks/results/{source.name}, sha256 {source.sha256[:12]}", fontsize=7, color=GRAY)
    figure.savefig(path, dpi=DPI, metadata={KEYWORD: str(source)})
    plt.close(figure)
