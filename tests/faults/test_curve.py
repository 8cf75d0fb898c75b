"""The curve is made of trials that can be counted by hand, and goes on where it was stopped."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dreluop.faults import bit_flips, fault_curve, plot

pd = pytest.importorskip("pandas")

X = torch.rand(40, 6, generator=torch.Generator().manual_seed(0))
RATES = [0.0, 1e-3, 1e-2]


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))


def logits(model: nn.Module) -> Tensor:
    return model(X)


def labels(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model.eval()(X).argmax(1)


def test_a_row_per_rate_with_the_statistics_of_its_trials(model, tmp_path):
    truth = labels(model)
    model.train()
    path = tmp_path / "curve.jsonl"
    frame = fault_curve(model, logits, RATES, 12, labels=truth, path=path, progress=False)
    assert model.training
    assert frame.attrs["clean"] == 1.0
    assert frame["rate"].tolist() == RATES
    assert frame["trials"].tolist() == [12] * 3
    trials = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    for row in frame.to_dict("records"):
        own = [trial for trial in trials if trial["rate"] == row["rate"]]
        scores = torch.tensor([trial["score"] for trial in own], dtype=torch.float64)
        assert math.isclose(row["mean"], float(scores.mean()))
        assert math.isclose(row["p5"], float(scores.quantile(0.05)))
        assert math.isclose(row["changed"], sum(trial["changed"] for trial in own) / 12)
    first = frame.iloc[0]
    assert (first["mean"], first["changed"], first["nan"], first["flips"]) == (1, 0, 0, 0)
    assert frame["flips"].is_monotonic_increasing
    assert frame["mean"].iloc[-1] < 1


def test_without_labels_the_score_is_the_agreement(model):
    frame = fault_curve(model, logits, [1e-2], 5, progress=False)
    assert frame["mean"].iloc[0] == pytest.approx(1 - frame["changed"].iloc[0])


def test_nan_outputs_are_counted_and_wrong(model):
    def poisoned(model: nn.Module) -> Tensor:
        y = model(X).clone()
        # The first class, which argmax would name.
        y[:10, 0] = torch.nan
        return y

    clean = fault_curve(model, logits, [0.0], 1, labels=torch.zeros(40, dtype=torch.int64), progress=False)
    assert clean["nan"].iloc[0] == 0
    frame = fault_curve(model, poisoned, [0.0], 1, labels=torch.zeros(40, dtype=torch.int64), progress=False)
    assert frame["nan"].iloc[0] == 0.25
    assert frame.attrs["clean"] <= 0.75


def test_a_trial_depends_on_its_seed_rate_and_number_alone(model):
    whole = fault_curve(model, logits, RATES, 4, seed=7, progress=False)
    part = fault_curve(model, logits, RATES[2:], 4, seed=7, progress=False)
    assert part.iloc[0].to_dict() == whole.iloc[2].to_dict()
    assert not fault_curve(model, logits, RATES[2:], 4, seed=8, progress=False).equals(part)


def test_it_goes_on_where_it_was_stopped(model, tmp_path):
    path = tmp_path / "new" / "curve.jsonl"
    whole = fault_curve(model, logits, RATES, 4, progress=False)
    calls = 0

    def stopped(model: nn.Module) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 7:
            raise KeyboardInterrupt
        return logits(model)

    with pytest.raises(KeyboardInterrupt):
        fault_curve(model, stopped, RATES, 4, path=path, progress=False)
    # Killed while it wrote the last line.
    with path.open("a") as file:
        file.write('{"rate": 0.0')
    calls = 100
    frame = fault_curve(model, stopped, RATES, 4, path=path, progress=False)
    assert calls == 100 + 1 + 7
    assert frame.equals(whole)
    assert fault_curve(model, logits, RATES, 4, path=path, progress=False).equals(whole)


@pytest.mark.parametrize(("change", "key"), [({"seed": 1}, "seed"), ({"bits": [3]}, "bits"), ({}, "model")])
def test_a_file_of_something_else_is_refused(model, tmp_path, change, key):
    path = tmp_path / "curve.jsonl"
    # A number that no weight changes, so that only the fingerprint differs.
    fault_curve(model, lambda model: 0.5, [1e-3], 1, path=path, progress=False)
    before = path.read_text()
    if key == "model":
        with torch.no_grad():
            model[0].bias += 1
    with pytest.raises(ValueError, match=f"is of {key} .*; expected .* or another file"):
        fault_curve(model, lambda model: 0.5, [1e-3], 1, path=path, progress=False, **change)
    assert path.read_text() == before
    path.write_text("not JSON\n")
    with pytest.raises(ValueError, match=r"curve.jsonl is no file of fault_curve"):
        fault_curve(model, lambda model: 0.5, [1e-3], 1, path=path, progress=False)


def test_a_wrong_argument_leaves_no_file(model, tmp_path):
    path = tmp_path / "curve.jsonl"
    with pytest.raises(ValueError, match="where: got 'weihgts'"):
        fault_curve(model, logits, [1e-3], 1, where="weihgts", path=path, progress=False)
    assert not path.exists()


def test_a_clean_score_of_nan_can_be_resumed(model, tmp_path):
    path = tmp_path / "curve.jsonl"
    for _ in range(2):
        frame = fault_curve(model, lambda model: math.nan, [1e-3], 2, path=path, progress=False)
        assert math.isnan(frame.attrs["clean"])


def test_other_labels_are_another_curve(model, tmp_path):
    path = tmp_path / "curve.jsonl"
    truth = labels(model)
    fault_curve(model, logits, [1e-3], 1, labels=truth, path=path, progress=False)
    with pytest.raises(ValueError, match=r"is of (clean|labels)"):
        fault_curve(model, logits, [1e-3], 1, labels=(truth + 1) % 3, path=path, progress=False)


def test_without_faults_nothing_changes_whatever_the_dtype(model):
    frame = fault_curve(model, logits, [0.0], 1, dtype=torch.int8, bits=[7], progress=False)
    assert (frame["changed"].iloc[0], frame["mean"].iloc[0]) == (0, 1)


def test_numpy_integers_and_an_empty_file(model, tmp_path):
    path = tmp_path / "curve.jsonl"
    path.touch()
    seed, bits = np.int64(3), [np.int64(3)]
    frame = fault_curve(model, logits, [1e-2], 2, seed=seed, bits=bits, path=path, progress=False)
    assert frame.equals(fault_curve(model, logits, [1e-2], 2, seed=3, bits=[3], path=path, progress=False))


def test_other_inputs_from_call_to_call_are_refused(model):
    sizes = iter((40, 39))
    with pytest.raises(ValueError, match="evaluate: gave 39 predictions, and 40 predictions before"):
        fault_curve(model, lambda model: model(X[: next(sizes)]), [1e-2], 1, progress=False)


def test_a_number_as_score(model):
    seen = []

    def weights_changed(model: nn.Module) -> Tensor:
        seen.append(float(model[0].weight.sum()))
        return torch.tensor(float(len(set(seen))))

    frame = fault_curve(model, weights_changed, [1e-2], 3, progress=False)
    assert frame.attrs["clean"] == 1
    assert frame["mean"].iloc[0] == 3
    assert frame["changed"].isna().all()


def test_places_and_dtypes_are_those_of_bit_flips(model):
    frame = fault_curve(model, logits, [1.0], 1, where="activations", bits=[31], progress=False)
    assert frame["flips"].iloc[0] == 40 * 8
    frame = fault_curve(model, logits, [1.0], 1, dtype=torch.int8, bits=[0], progress=False)
    assert frame["flips"].iloc[0] == 6 * 8 + 8 * 3


WRONG = {
    "rate": ({"rates": 0.1}, TypeError, "rates: got float; expected several numbers"),
    "model": ({"model": "m"}, TypeError, "model: got str; expected a torch.nn.Module"),
    "list": ({"labels": [1, 2]}, TypeError, "labels: got list; expected a torch.Tensor"),
    "dtype": (
        {"labels": torch.zeros(3)},
        ValueError,
        r"labels: got torch.float32 of shape \(3,\); expected torch.int64",
    ),
    "class": ({"labels": torch.full((40,), -1)}, ValueError, "labels: got -1; expected numbers of classes, >= 0"),
    "rates": ({"rates": [2.0]}, ValueError, r"rates: got \[2.0\]; expected at least one, in \[0, 1\]"),
    "none": ({"rates": []}, ValueError, r"rates: got \[\]; expected at least one"),
    "twice": ({"rates": [0.1, 0.1]}, ValueError, "expected different ones"),
    "seed": ({"seed": 1.5}, TypeError, "seed: got float"),
    "trials": ({"trials": 0}, ValueError, "trials: got 0"),
    "labels": (
        {"labels": torch.zeros(3).long()},
        ValueError,
        r"evaluate: gave shape \(40, 3\); expected logits of shape \(3, c",
    ),
    "result": ({"evaluate": lambda model: "good"}, TypeError, "evaluate: its result: got str"),
    "shape": ({"evaluate": lambda model: X[0]}, ValueError, r"evaluate: gave shape \(6,\); expected logits of shape"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(model, name):
    given, error, message = WRONG[name]
    arguments = {"model": model, "evaluate": logits, "rates": [0.1], "trials": 1, "progress": False} | given
    with pytest.raises(error, match=message):
        fault_curve(**arguments)


def test_the_picture_has_each_curve_with_its_mean_and_percentile(model):
    pytest.importorskip("matplotlib")
    frame = fault_curve(model, logits, [1e-3, 1e-2], 3, progress=False)
    figure = plot({"ReLU": frame, "the same": frame}, title="a title")
    (axes,) = figure.axes
    drawn = [list(line.get_ydata()) for line in axes.lines]
    assert drawn == [frame["mean"].tolist(), frame["p5"].tolist(), [1.0, 1.0]] * 2
    assert axes.get_title() == "a title"
    with pytest.raises(ValueError, match="curves: got none"):
        plot({})
    with pytest.raises(TypeError, match="curves: got DataFrame; expected a mapping"):
        plot(frame)


def test_the_model_is_restored_when_evaluate_fails(model):
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(ZeroDivisionError):
        fault_curve(model, lambda model: 1 / 0, [0.5], 1, progress=False)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    with pytest.raises(RuntimeError), bit_flips(model, 0.5):
        model(torch.zeros(3, 3))
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
