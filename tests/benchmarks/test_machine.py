"""What is reported of the machine: caches, memory, device, commit; and that the reference is not measured unasked."""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path

import pytest
import torch

from benchmarks.harness import machine
from benchmarks.harness.files import DamagedFileError, load_document, save_document
from dreluop._internal import env
from dreluop.backends import native
from tests.benchmarks.conftest import GPU


def test_last_level_cache(tmp_path: Path) -> None:
    assert machine.last_level_cache(tmp_path) == machine.USUAL_CACHE
    for index, text in enumerate(("32K\n", "1024K\n", "36M\n")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(text)
    assert machine.last_level_cache(tmp_path) == 36 * 2**20


def test_available_memory(tmp_path: Path) -> None:
    file = tmp_path / "meminfo"
    assert machine.available_memory(file) > 2**28
    file.write_text("MemTotal:       100 kB\nMemAvailable:      7 kB\n")
    assert machine.available_memory(file) == 7 * 1024


def test_the_processor_is_described() -> None:
    device, versions = machine.describe(torch.device("cpu"))
    assert device["name"] and device["cores"] >= 1  # type: ignore[typeddict-item]
    assert versions["torch"] == torch.__version__ and "cuda" not in versions
    backend = machine.backend()
    assert backend["serves"] == ("native" if native.is_loaded() else "reference")
    assert backend["load_error"] == native.load_error


def test_a_gpu_is_named_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    assert machine.describe_device(torch.device("cuda", 1))["name"] == "GPU 1"


def test_there_is_one_folder_per_device() -> None:
    processor = {"name": "Xeon(R) CPU @ 2.20GHz", "cores": 4, "transparent_hugepages": None}
    assert machine.folder_of(processor) == machine.RESULTS / "xeon-r-cpu-2-20ghz-4-cores"
    assert machine.folder_of(GPU) == machine.RESULTS / "some-h100-80gb-hbm3"


def test_native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "load_error", None)
    assert machine.require_native(argparse.ArgumentParser()) == "native"


def test_a_library_that_does_not_load_ends_the_program(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(native, "load_error", "no such file")
    monkeypatch.delenv(env.ENVIRONMENT_VARIABLE, raising=False)
    with pytest.raises(SystemExit, match="2"):
        machine.require_native(argparse.ArgumentParser())
    assert "the compiled operators do not load: no such file" in capsys.readouterr().err


def test_the_reference_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "load_error", "not loaded")
    monkeypatch.setenv(env.ENVIRONMENT_VARIABLE, "reference")
    assert machine.require_native(argparse.ArgumentParser()) == "reference"


def test_only_results_and_documents_may_differ_from_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    package = tmp_path / "benchmarks" / "harness"
    package.mkdir(parents=True)
    monkeypatch.setattr(machine, "__file__", str(package / "machine.py"))
    monkeypatch.delenv(machine.COMMIT_VARIABLE, raising=False)
    git("init")
    (tmp_path / "code.py").write_text("1")
    git("add", ".")
    git("commit", "-m", "first")
    (tmp_path / "README.md").write_text("table")
    (tmp_path / "benchmarks" / "results").mkdir()
    (tmp_path / "benchmarks" / "results" / "kernels.jsonl").write_text("{}")
    (tmp_path / "docs" / "pictures").mkdir(parents=True)
    (tmp_path / "docs" / "pictures" / "a.png").write_text("picture")
    clean = machine.commit()
    assert clean is not None and len(clean["hash"]) == 40 and not clean["dirty"]
    (tmp_path / "code.py").write_text("2")
    assert machine.commit() == {"hash": clean["hash"], "dirty": True}
    # A copy may be beside the history of another commit, and the environment knows.
    for text, dirty in (("abc123", False), ("abc123-dirty", True)):
        monkeypatch.setenv(machine.COMMIT_VARIABLE, text)
        assert machine.commit() == {"hash": "abc123", "dirty": dirty}


def test_no_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "machine.py"))
    monkeypatch.delenv(machine.COMMIT_VARIABLE, raising=False)
    assert machine.commit() is None
    assert machine.commit_name(None) == "no commit known"


def test_saved_documents_load_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "some.json"
    save_document({"schema": 1, "rows": [1]}, path)
    assert load_document(path) == json.loads(path.read_text()) == {"schema": 1, "rows": [1]}


@pytest.mark.parametrize(
    ("text", "message", "kind"),
    [
        ("{", "no valid JSON", DamagedFileError),
        ("[]", "got schema None; expected 1", DamagedFileError),
        ('{"schema": 0}', "got schema 0; expected 1", ValueError),
    ],
)
def test_foreign_documents_are_refused(tmp_path: Path, text: str, message: str, kind: type[ValueError]) -> None:
    path = tmp_path / "some.json"
    path.write_text(text)
    with pytest.raises(kind, match=message) as caught:
        load_document(path)
    assert str(path) in str(caught.value) and type(caught.value) is kind
