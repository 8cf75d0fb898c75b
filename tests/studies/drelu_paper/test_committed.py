"""A committed run, trained and evaluated again, gives its committed numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.harness.machine import RESULTS
from dreluop.adaptive import evaluate
from studies.drelu_paper import configuration, records
from studies.drelu_paper.report.pages import FOLDER_NAME
from studies.drelu_paper.trained_models import dataset_of, train_recipe, trained


def test_a_run_gives_its_committed_columns(tmp_path: Path):
    """Of a ReLU network: where caps fall, another processor's rounding moves the end of training by many epochs."""
    run = configuration.read("digits").runs[0]
    record = records.newest(run, RESULTS / FOLDER_NAME)
    train_recipe(run.recipe, tmp_path, progress=False)
    model, _, history = trained(run.recipe, tmp_path)
    # Another processor rounds otherwise, and training carries it on.
    expected = record["training"]["history"]["validation_accuracy"]
    assert len(history.records) == pytest.approx(len(expected), abs=4)
    assert history.column("validation_accuracy")[:3] == pytest.approx(expected[:3], abs=0.005)
    dataset = dataset_of(run.recipe.data, None)
    x, y = dataset.test.first(run.attacks.samples)
    names = ("fgsm", "pgd", "apgd_ce", "apgd_dlr")
    found = evaluate(model, x, y, run.attacks.eps, attacks=names, budget=run.attacks.budget)
    evaluation = record["evaluation"]
    for name in ("clean", *names):
        assert found.accuracy[name] == pytest.approx(evaluation["accuracy"][name], abs=0.02), name
    assert found.zero_gradient == pytest.approx(evaluation["zero_gradient"], abs=0.03)
    assert found.caps is evaluation["caps"] is None
