"""The smoke configuration: every model family, method, attack and picture once, as a stranger would run it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from studies.drelu_paper import command, configuration, records
from studies.drelu_paper.data import digits
from studies.drelu_paper.trained_models import dataset_of
from tests.support.optional import torchvision_or_skip


@pytest.fixture
def few_digits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Validation, of all digits after every epoch, would take most of the time."""
    monkeypatch.setattr(digits, "SPLIT_SIZES", (320, 50, 100))
    dataset_of.cache_clear()
    yield
    dataset_of.cache_clear()


@pytest.mark.usefixtures("few_digits")
def test_smoke(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    torchvision_or_skip()
    where = ["--results", str(tmp_path / "records")]
    run = ["run", "smoke", "--quiet", "--device", "cpu", "--engine", "serial", "--work", str(tmp_path / "work"), *where]
    assert command.main(run) == 0
    study = configuration.read("smoke")
    found = records.found(study.runs, tmp_path / "records")
    assert len(found) == len(study.runs)
    assert {one["recipe"]["method"] for one in found} == {"natural", "at", "trades", "drelu"}
    assert {one["recipe"]["place"] for one in found} == {"head", "stem"}
    assert any(one["recipe"]["data"]["generated"] for one in found)
    assert any("auto_attack" in one["evaluation"]["accuracy"] for one in found)
    assert {"dense", "shallow_cnn", "mobilenet_v2"} == {one["recipe"]["model"] for one in found}
    assert command.main(["table", "smoke", "--adaptive", "--cost", *where]) == 0
    assert "digits + generated" in capsys.readouterr().out
    assert command.main(["plot", "smoke", "--output", str(tmp_path), *where]) == 0
    assert (tmp_path / "smoke-balancer.png").stat().st_size > 10_000
