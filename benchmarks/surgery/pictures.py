"""The two pictures of docs/surgery.md, a block and the saturation monitor: `python -m benchmarks.surgery.pictures`."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter
from torch import fx, nn

from benchmarks.harness.entry import exit_with
from benchmarks.harness.plot import BLUE, GRAY, GREEN, ORANGE, PURPLE
from dreluop.diagnostics import SaturationMonitor, SaturationWarning, Snapshot
from dreluop.surgery import calibrate_caps, replace_activations
from dreluop.surgery.graphs import trace
from studies.drelu_paper.data import Digits, load_digits
from studies.drelu_paper.models import dense_drelu
from studies.drelu_paper.training import TrainingConfig, train

DPI = 110
FOLDER = Path(__file__).parents[2] / "docs" / "pictures"
Box = tuple[str, str]  # text, color


def draw_block(path: Path) -> None:
    """ResNet18's second block, as its forward runs, before and after ``replace_activations``."""
    from torchvision import models  # noqa: PLC0415 (optional)

    before = models.resnet18(weights=None)
    after = copy.deepcopy(before)
    replace_activations(after)
    figure, panels = plt.subplots(1, 2, figsize=(8, 4.6), layout="constrained")
    for axes, model, title in zip(panels, (before, after), ("before", "after"), strict=True):
        _draw_chain(axes, _boxes(model.layer1[1]), f"layer1.1 (BasicBlock), {title}")
    figure.savefig(path, dpi=DPI)
    plt.close(figure)


def _boxes(block: nn.Module) -> list[Box]:
    boxes = []
    for node in trace(block).nodes:
        if node.op == "call_module":
            boxes.append(_module_box(node, block.get_submodule(str(node.target))))
        elif node.op == "call_function":
            boxes.append(("out += x", GRAY))
    return boxes


def _module_box(node: fx.Node, module: nn.Module) -> Box:
    kind = type(module).__name__
    cap = getattr(module, "cap", None)
    text = f"{node.target}: {kind}" + ("" if cap is None else f", {cap.numel()} caps")
    if len(node.args) == 2:
        text += "\nof out + x, in one pass"
    return text, BLUE if cap is not None else ORANGE if isinstance(module, nn.ReLU) else GRAY


def _draw_chain(axes: Axes, boxes: Sequence[Box], title: str) -> None:
    for place, (text, color) in enumerate(boxes):
        letters, face = ("black", "#eeeeee") if color == GRAY else ("white", color)
        box = {"boxstyle": "round,pad=0.4", "facecolor": face, "edgecolor": color}
        axes.text(0.5, -place, text, ha="center", va="center", fontsize=10, color=letters, bbox=box)
        if place:
            axes.annotate(
                "", (0.5, -place + 0.28), (0.5, -place + 0.72), arrowprops={"arrowstyle": "->", "color": GRAY}
            )
    axes.set(xlim=(0, 1), ylim=(-6.6, 0.6), title=title)
    axes.axis("off")


def draw_monitor(digits: Digits, path: Path, epochs: int = 12) -> str:
    """Train the demo's network under a monitor and draw its history; returns its last table and warnings."""
    model = dense_drelu(0)
    warm_up = TrainingConfig(epochs=2, balancer=0.0, stop_patience=None)
    train(model, digits.train, digits.validation, warm_up, "warm-up")
    calibrate_caps(model, [digits.train.x[:512]], progress=False)
    config = TrainingConfig(epochs=epochs, balancer=1.0, cap_lr=1e-2, stop_patience=None)
    with warnings.catch_warnings(record=True) as caught, SaturationMonitor(model, every=10) as monitor:
        warnings.simplefilter("always", SaturationWarning)
        train(model, digits.train, digits.validation, config, "monitored")
    _draw_history(list(monitor.history), path)
    shown = [str(one.message) for one in caught if issubclass(one.category, SaturationWarning)]
    return "\n".join([str(monitor), *(f"warning: {message}" for message in shown)])


def _draw_history(history: Sequence[Snapshot], path: Path) -> None:
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(7.5, 5.5), sharex=True, layout="constrained")
    steps = [snapshot.step for snapshot in history]
    rows = [snapshot.layers[0] for snapshot in history]
    for name, label, color in (
        ("off", "off (x <= 0)", GRAY), ("inside", "inside", GREEN), ("capped", "capped (x >= cap)", BLUE),
        ("no_live", "samples with no live unit", PURPLE),
    ):  # fmt: skip
        style = "--" if name == "no_live" else "-"
        top.plot(steps, [getattr(row, name) for row in rows], style, color=color, label=label)
    top.axhline(0.05, color=PURPLE, linewidth=0.8, linestyle=":")
    top.set(ylabel="share", ylim=(-0.03, 1.03), title=f"SaturationMonitor: {rows[0].name}, {rows[0].caps} caps")
    top.yaxis.set_major_formatter(PercentFormatter(1))
    top.legend(loc="upper left", ncols=2)
    bottom.plot(steps, [row.cap_over_std for row in rows], color=ORANGE, label="median cap / std(x)")
    bottom.plot(steps, [row.cap_median for row in rows], color=BLUE, label="median cap")
    bottom.axhline(0.1, color=ORANGE, linewidth=0.8, linestyle=":")
    bottom.set(xlabel="training step", yscale="log")
    bottom.legend(loc="upper right")
    figure.savefig(path, dpi=DPI)
    plt.close(figure)


def main() -> int:
    """Draw both into ``docs/pictures``."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    draw_block(FOLDER / "surgery-block.png")
    print(draw_monitor(load_digits(), FOLDER / "saturation-monitor.png"))
    print(f"written: {FOLDER}")
    return 0


if __name__ == "__main__":
    exit_with(main)
