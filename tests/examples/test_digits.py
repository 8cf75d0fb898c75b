"""The demo, end to end on a few digits, and the parts of it that decide what is shown."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from matplotlib import image

from dreluop.adaptive.attacks import accuracy, pgd
from examples.digits import experiment, report, timing
from examples.digits.__main__ import main
from examples.digits.pictures import draw_timing, draw_training
from studies.drelu_paper.data import Digits, Split, load_digits
from tests.support.patience import PATIENCE

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def few() -> Digits:
    """320 training, 100 validation and 200 test digits."""
    return Digits(*(Split(s.x[:n], s.y[:n]) for s, n in zip(load_digits(), (320, 100, 200), strict=True)))


@pytest.fixture(scope="module")
def results(few: Digits) -> experiment.Results:
    return experiment.run(few, epochs=4)


def test_quick_demo_prints_its_tables_and_writes_two_pictures(tmp_path: Path):
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "examples.digits", "--quick", "--output", str(tmp_path / "out")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for wanted in ("clean", "FGSM", "PGD", "zero gradient", "mean cap", "seconds", "ReLU baseline", "gradient masking"):
        assert wanted in done.stdout
    for wanted in ("dreluop", "clamp", "relu(minimum)", "forward+backward", "floor ms"):
        assert wanted in done.stdout
    assert "epoch" in done.stderr  # the progress bar
    pictures = sorted((tmp_path / "out").iterdir())
    assert [picture.name for picture in pictures] == ["timing.png", "training.png"]
    for picture in pictures:
        pixels = image.imread(picture)
        assert min(pixels.shape[:2]) > 300
        assert pixels.std() > 0.05


@pytest.mark.parametrize("epochs", ["0", "2"])
def test_bad_epochs_end_with_a_clear_message(epochs, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--epochs", epochs])
    assert f"--epochs: got {epochs}; expected more than the 2 of the warm-up" in capsys.readouterr().err


def test_run_refuses_too_few_epochs(few: Digits):
    with pytest.raises(ValueError, match="epochs: got 2; expected more than the 2 of the warm-up"):
        experiment.run(few, epochs=2)


def test_baselines_share_the_warm_up_and_part_when_the_caps_are_calibrated(results: experiment.Results):
    drelu, relu = results.drelu, results.relu
    assert drelu.epochs == relu.epochs == [0, 1, 2, 2, 3, 4]
    warm = [record.validation_accuracy for record in drelu.records[:3]]
    assert warm == [record.validation_accuracy for record in relu.records[:3]]
    caps = [record.cap_mean for record in drelu.records]
    assert caps[:3] == [100, 100, 100]
    assert 100 > caps[3] > caps[4] > caps[5] > 0
    assert [record.cap_mean for record in relu.records] == [None] * 6


def test_evaluations_belong_to_their_networks(results: experiment.Results, few: Digits):
    for network in (results.drelu, results.relu):
        expected = experiment.evaluated(network.model, few.test)
        found = network.evaluation
        assert (found.accuracy, found.zero_gradient) == (expected.accuracy, expected.zero_gradient)


def test_transferred_is_the_d_relu_network_on_its_baseline_s_attack(
    results: experiment.Results, few: Digits, monkeypatch
):
    x, y = few.test
    attacked = pgd(results.relu.model, x, y, experiment.EPS, seed=experiment.SEED)
    assert results.transferred == accuracy(results.drelu.model, attacked, y)
    # After so few epochs the baselines may score alike, so the caller is looked at too.
    asked = []
    monkeypatch.setattr(experiment, "accuracy", lambda model, x, y: asked.append((model, x)) or 0.5)
    monkeypatch.setattr(experiment, "_train", lambda name, *_: results.drelu if name == "D-ReLU" else results.relu)
    assert experiment.run(few, epochs=4).transferred == 0.5
    assert asked[0][0] is results.drelu.model
    assert torch.equal(asked[0][1], attacked)


def test_words_carry_this_run_s_numbers(results: experiment.Results):
    words = report.explain(results)
    assert f"for {results.drelu.evaluation.zero_gradient:.1%} of the test digits" in words
    assert f"leave it {results.transferred:.1%} accuracy" in words
    assert "NOT robustness" in words


def test_timing_rows_have_every_implementation_and_pass():
    rows = timing.rows(threads=1, quick=True)
    found = {(row["implementation"], row["pass"]) for row in rows}
    implementations, passes = ("dreluop", "clamp", "relu(minimum)"), ("forward", "backward", "forward+backward")
    assert found == {(implementation, name) for implementation in implementations for name in passes}
    for row in rows:
        assert row["ratio_to_floor"] == pytest.approx(row["ms"] / row["floor_ms"])


def test_full_timing_is_the_kernel_benchmark_s(monkeypatch):
    monkeypatch.setattr(timing.kernel_cases, "demo_rows", lambda threads: [threads])
    assert timing.rows(threads=2) == [2]


@pytest.mark.parametrize(("value", "text"), [(0.012345, "0.0123"), (9.876, "9.88"), (99.4, "99.4"), (2077.1, "2077")])
def test_milliseconds(value, text):
    assert timing.milliseconds(value) == text


def test_pictures_follow_the_data(results: experiment.Results, tmp_path: Path):
    row = {"dtype": "float32", "pass": "forward", "ms": 2.0, "floor_ms": 1.0}
    for name, ratios in (("a", (1.0, 2.0)), ("b", (1.0, 5.0))):
        rows = [{**row, "implementation": who, "ratio_to_floor": r} for who, r in zip("xy", ratios, strict=True)]
        draw_timing(rows, 2, tmp_path / "new" / f"{name}.png")
    assert (tmp_path / "new" / "a.png").read_bytes() != (tmp_path / "new" / "b.png").read_bytes()
    draw_training(results.drelu, results.relu, tmp_path / "c.png")
    assert (tmp_path / "c.png").stat().st_size > 10_000
