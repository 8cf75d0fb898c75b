"""The study runs every variant on every kind of faults, goes on where it was interrupted, and makes its tables."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks.harness import records
from studies.bit_flips import __main__ as study
from studies.bit_flips import report
from studies.bit_flips.networks import NETWORKS, Recipe, trained
from studies.bit_flips.variants import ACTIVATIONS, LEARNED, VARIANTS
from studies.drelu_paper.data import Split, load_digits

pytest.importorskip("pandas")


@pytest.fixture(scope="module")
def few() -> Split:
    training = load_digits()[0]
    return Split(training.x[:96], training.y[:96])


@functools.cache
def network_of(network: str, activation: str) -> nn.Sequential:
    training = load_digits()[0]
    data = Split(training.x[:256], training.y[:256])
    return trained(network, ACTIVATIONS[activation], Recipe(1, 1e-3 if activation == LEARNED else 0.0), data, 0)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_gives_logits_of_the_trained_network(network: str, name: str, few: Split):
    variant = VARIANTS[name]
    model = network_of(network, variant.activation)
    want = model(few.x).detach()
    for dtype in (torch.float32, torch.bfloat16):
        subject = variant.of(model, few.x, dtype)
        got: Tensor = subject.logits(few.x).detach()
        agree = (got.argmax(1) == want.argmax(1)).float().mean()
        assert agree > (0.9 if dtype == torch.float32 else 0.8)
    assert torch.equal(model(few.x), want), "the trained network was changed"


def test_record_and_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few: Split):
    monkeypatch.setattr(study, "WORK", tmp_path / "work")
    monkeypatch.setattr(study, "EPOCHS", {"CNN": 1})
    monkeypatch.setattr(study, "RATES", (1e-5, 1e-3))
    monkeypatch.setattr(study, "load_digits", lambda: (few, few, few))
    monkeypatch.setattr(study.machine, "commit", lambda: {"hash": "abc", "dirty": False})
    study.network_of.cache_clear()
    asked = ["--networks", "CNN", "--seeds", "1", "--trials", "2", "--inputs", "20", "--out", str(tmp_path)]
    asked += ["--variants", "ReLU", "protect", "protect, protect_weights"]
    assert study.main(asked) == 0
    record = records.load(tmp_path / report.FILE_NAME)
    cases = {(row["key"]["variant"], row["key"]["kind"]) for row in record.rows}
    assert ("ReLU", "caps") not in cases and ("protect", "caps") in cases
    assert ("protect, protect_weights", "weights, int8") not in cases and len(cases) == 6 + 7 + 6
    first = report.tables(record)[0]
    assert first.title == "CNN, weights, float32" and first.header == ("activations", "clean", "1e-05", "0.001")
    assert [row[0] for row in first.rows] == ["ReLU", "protect", "protect, protect_weights"]

    before = {path: path.read_text() for path in (tmp_path / "work").iterdir()}
    assert study.main(asked) == 0
    assert before == {path: path.read_text() for path in (tmp_path / "work").iterdir()}
    (tmp_path / "device").mkdir()
    (tmp_path / report.FILE_NAME).rename(tmp_path / "device" / report.FILE_NAME)
    assert "**CNN, weights, float32**" in report.page(tmp_path)
