"""What tables, pictures and statistics make of committed records, and of records like them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from matplotlib import pyplot as plt

from benchmarks.harness.files import load_document
from benchmarks.harness.machine import RESULTS
from studies.drelu_paper import command, configuration, records
from studies.drelu_paper.report import pages, pictures

FOLDER = RESULTS / pages.FOLDER_NAME


def committed(name: str) -> list[records.Record]:
    return records.found(configuration.read(name).runs, FOLDER)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are drawn; they are not written."""
    drawn: list[Any] = []

    def keep(figure, title, path):
        drawn.append(figure)
        plt.close(figure)

    monkeypatch.setattr(pictures, "_save", keep)
    return drawn


def like(record: records.Record, **changes: Any) -> records.Record:
    """A copy; the keys are those of the recipe, or ``label``, or ``bounds``."""
    changed = copy.deepcopy(record)
    for key, value in changes.items():
        if key == "label":
            changed["label"] = value
        elif key == "bounds":
            changed["evaluation"]["bounds"] = value
        else:
            changed["recipe"][key] = value
    return changed


def lines(axes: Any) -> dict[str, list[float]]:
    """The marked solid lines by their labels: what is drawn over the eps."""
    return {
        line.get_label().partition(", zero")[0]: [round(float(y), 4) for y in line.get_ydata()]
        for line in axes.lines
        if line.get_marker() == "o"
    }


def test_generated_images_have_a_line_of_their_own(figures: list[Any], tmp_path: Path):
    record = committed("digits-bounds")[-1]
    first = like(record, bounds={"0.1": {"apgd_ce": 0.5, "worst": 0.2}})
    data = {**record["recipe"]["data"], "generated": "x.npz", "original_share": 0.3}
    second = like(record, data=data, bounds={"0.1": {"apgd_ce": 0.9, "worst": 0.6}})
    pictures.bounds("T", [first, second], tmp_path / "x.png")
    (axes,) = figures[0].axes
    clean = round(record["evaluation"]["accuracy"]["clean"], 4)
    assert axes.get_title() == "dense"
    assert lines(axes) == {"D-ReLU 1": [clean, 0.2], "D-ReLU 1 + generated": [clean, 0.6]}


def test_every_method_has_a_line_and_a_color(figures: list[Any], tmp_path: Path):
    record = committed("digits-bounds")[-1]
    many = [like(record, label=f"D-ReLU {number}") for number in range(12)]
    pictures.bounds("T", many, tmp_path / "x.png")
    solid = [line for line in figures[0].axes[0].lines if line.get_marker() == "o"]
    assert len(solid) == len({tuple(line.get_color()) for line in solid}) == 12
    pictures.trajectory("T", many, tmp_path / "x.png")
    shown = [line for line in figures[1].axes[1].lines if line.get_label().startswith("D-ReLU")]
    assert len({tuple(line.get_color()) for line in shown}) == 12


def test_a_trajectory_without_a_gradient_to_follow_ends_in_no_number(figures: list[Any], tmp_path: Path):
    first = like(committed("digits-bounds")[-1], label="D-ReLU 1")
    second, other = like(first, seed=1), like(first, label="D-ReLU 2")
    for record, worst, blind in ((first, 0.9, 0.9), (second, 0.5, 0.0), (other, 0.25, 0.0)):
        record["evaluation"] |= {"worst": worst, "blind": blind}
    pictures.trajectory("T", [first, second, other], tmp_path / "x.png")
    labels = [line.get_label() for line in figures[0].axes[1].lines if not line.get_label().startswith("_")]
    assert labels == ["D-ReLU 1: adaptive worst at the end no gradient", "D-ReLU 2: adaptive worst at the end 25%"]


@pytest.mark.parametrize("kind", ["balancer", "bounds", "initial_cap", "trajectory"])
def test_data_sets_have_panels_of_their_own(kind: str, figures: list[Any], tmp_path: Path):
    record = committed("digits-bounds")[-1]
    other = like(record, data={**record["recipe"]["data"], "name": "mnist"})
    pictures.PICTURES[kind]("T", [record, other], tmp_path / "x.png")
    titles = [axes.get_title() for axes in figures[0].axes if axes.get_title()]
    assert titles == ["digits, dense", "mnist, dense"]


def test_first_values_of_the_caps_and_balancers_are_not_averaged(figures: list[Any], tmp_path: Path):
    found = committed("digits-initial-cap")
    pictures.balancer("T", found, tmp_path / "x.png")
    titles = [axes.get_title() for axes in figures[0].axes]
    assert titles == ["dense, caps calibrated", *(f"dense, caps from {init}" for init in (1, 10, 100))]
    training = {**found[0]["recipe"]["training"], "balancer": 2.0}
    other = like(found[0], training=training, label="D-ReLU 2")
    pictures.initial_cap("T", [found[0], other], tmp_path / "x.png")
    assert [axes.get_title() for axes in figures[1].axes[1::2]] == ["dense, balancer 1", "dense, balancer 2"]


def test_a_network_without_a_sweep_is_refused(figures: list[Any], tmp_path: Path):
    with pytest.raises(ValueError, match="records: got D-ReLU 1 from 100 without a sweep over bounds"):
        pictures.bounds("T", committed("digits-paper-mode"), tmp_path / "x.png")
    assert figures == []


def test_statistics_do_not_rank_a_masked_network_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """By the paper's attacks D-ReLU 100 would be the best: it is right on most inputs that they cannot move."""
    assert command.main(["stats", "digits", "--missing", "drop", "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "Inputs with zero gradient, of which the paper's attacks say nothing: D-ReLU 100 9" in printed
    document = load_document(tmp_path / "statistics.json")
    (comparison,) = document["comparisons"]
    assert comparison["basis"] == "adaptive worst, a block per network and seed"
    ranked = [method["name"] for method in comparison["methods"]]
    assert ranked[:3] == ["TRADES-6", "TRADES-1", "AT"]
    runs = {one["name"]: one for one in committed("digits") if one["recipe"]["model"] == "dense"}.values()
    for method in comparison["methods"]:
        worst = [one["evaluation"]["worst"] for one in runs if one["label"] == method["name"]]
        assert method["mean_accuracy"] == pytest.approx(100 * sum(worst) / len(worst))


def test_a_study_whose_records_come_with_the_source_says_where_to_write_new_ones(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(command, "jobs_of", lambda *_: [])
    monkeypatch.setattr(records, "find", records.newest)
    assert command.main(["run", "digits-paper-mode"]) == 0
    assert capsys.readouterr().out == (
        f"1 runs, 1 done; 0 jobs left\nall records are in {FOLDER}, which come with the source; to make new ones, name "
        "another folder: --results DIR\n"
    )
