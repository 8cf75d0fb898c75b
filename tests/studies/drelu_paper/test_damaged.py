"""Files that are not whole: they are set aside by name, and a study goes on from those that are."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.harness.files import DamagedFileError
from studies.drelu_paper import command, configuration, engines, jobs, records, trained_models
from studies.drelu_paper.configuration import Study
from studies.drelu_paper.jobs import Folders, Job, do, jobs_of
from studies.drelu_paper.training import checkpoint

ONE = """
title: One
data: {name: digits, train_limit: 32}
seeds: [0]
models: [dense]
methods: [{method: drelu, balancer: 1}]
training: {epochs: 2}
attacks: {eps: 0.1, samples: 4, pgd_steps: 1, apgd_steps: 1, square_queries: 1, cw_samples: 0}
"""
Damage = Callable[[Path], None]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    """One bit of a tensor: torch.load does not see it."""
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda member: member.file_size)
    content = bytearray(path.read_bytes())
    # Behind the local header, whose name and padding are shorter than this.
    content[largest.header_offset + 30 + largest.file_size // 2] ^= 1
    path.write_bytes(content)


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Damage] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": cut,
    "garbage": lambda path: path.write_bytes(b"\x80\x02garbage"),
    "flipped": flip,
    "another": lambda path: torch.save({"x": 1}, path),
    "no mapping": lambda path: torch.save([1, 2], path),
    "folder": make_folder,
}


def changing(part: str, key: str | None, *value: Any) -> Damage:
    """A record with this key of a part of it, or the part itself, given or removed."""

    def change(path: Path) -> None:
        record = json.loads(path.read_text())
        place, name = (record, part) if key is None else (record[part], key)
        del place[name]
        if value:
            (place[name],) = value
        path.write_text(json.dumps(record))

    return change


class KilledError(Exception):
    """Stands for SIGKILL at a chosen place."""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    path = tmp_path_factory.mktemp("configuration") / "one.yaml"
    path.write_text(ONE)
    return configuration.read(path)


@pytest.fixture(scope="module")
def whole(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Folders:
    folder = tmp_path_factory.mktemp("whole")
    folders = Folders(folder / "records", folder / "work", progress=False)
    assert run(study, folders) == []
    return folders


def run(study: Study, folders: Folders) -> list[engines.Failure]:
    return engines.serial(jobs_of(study.runs, folders), partial(do, folders=folders))


def check(study: Study, folders: Folders, whole: Folders) -> None:
    """The run ends with the numbers of one that nothing happened to."""
    assert run(study, folders) == []
    (found,), (expected,) = (records.found(study.runs, one.results) for one in (folders, whole))
    for part in ("warm_up", "training"):
        assert found[part]["history"] == expected[part]["history"]
    assert found["evaluation"]["accuracy"] == expected["evaluation"]["accuracy"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named(damage: str, tmp_path: Path):
    path = tmp_path / "some.pt"
    checkpoint.save({"model": torch.arange(5000.0)}, path)
    assert list(checkpoint.load(path, ["model"])) == ["model"]
    DAMAGES[damage](path)
    with pytest.raises(DamagedFileError, match=r"some\.pt: not a whole checkpoint") as caught:
        checkpoint.load(path, ["model"])
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_not_damaged(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        checkpoint.load(tmp_path / "none.pt")


@pytest.mark.parametrize("part", trained_models.PARTS)
@pytest.mark.parametrize("damage", ["cut", "flipped", "another"])
def test_a_damaged_checkpoint_of_training(
    part: str, damage: str, study: Study, whole: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    folders = Folders(tmp_path / "records", tmp_path / "work", progress=False)
    recipe = study.runs[0].recipe
    file = folders.work / recipe.name / f"{part}.pt"
    original = checkpoint.save

    def killed_after_an_epoch(state, path):
        original(state, path)
        if path == file:
            raise KilledError

    monkeypatch.setattr(checkpoint, "save", killed_after_an_epoch)
    with pytest.raises(KilledError):
        trained_models.train_recipe(recipe, folders.work, progress=False)
    monkeypatch.setattr(checkpoint, "save", original)
    DAMAGES[damage](file)
    capsys.readouterr()
    check(study, folders, whole)
    shown = capsys.readouterr().err
    assert f"{file}: not a whole checkpoint" in shown
    assert f"set aside as {part}.pt.damaged-1" in shown
    assert file.with_name(f"{part}.pt.damaged-1").exists()


@pytest.mark.parametrize("damage", ["cut", "garbage", "another", "folder"])
def test_a_damaged_file_of_a_evaluation(
    damage: str, study: Study, whole: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    folders = Folders(tmp_path / "records", whole.work, progress=False)
    original = jobs._Kept.begins

    def killed(self, name):
        if name == "pgd":
            raise KilledError
        original(self, name)

    monkeypatch.setattr(jobs._Kept, "begins", killed)
    with pytest.raises(KilledError):
        do(Job("evaluate", study.runs[0]), folders)
    monkeypatch.setattr(jobs._Kept, "begins", original)
    file = jobs._evaluated_file(study.runs[0], folders)
    DAMAGES[damage](file)
    check(study, folders, whole)
    shown = capsys.readouterr().err
    assert f"{file}: not a whole checkpoint" in shown
    assert f"set aside as {file.name}.damaged-" in shown
    assert not file.exists()


def test_a_damaged_model_is_trained_again(study: Study, whole: Folders, tmp_path: Path, capsys):
    folders = Folders(tmp_path / "records", tmp_path / "work", progress=False)
    assert run(study, folders) == []
    (record,) = folders.results.iterdir()
    record.unlink()
    for number in (1, 2):
        model = trained_models.result_file(study.runs[0].recipe, folders.work)
        flip(model)
        assert [job.name.split()[0] for job in jobs_of(study.runs, folders)] == ["train", "evaluate"]
        assert f"set aside as trained.pt.damaged-{number}" in capsys.readouterr().err
        check(study, folders, whole)
        record.unlink()


def test_what_is_damaged_while_a_study_runs_does_not_stop_the_next(study: Study, whole: Folders, tmp_path: Path):
    folders = Folders(tmp_path / "records", tmp_path / "work", progress=False)
    todo = jobs_of(study.runs, folders)

    def damaging(job: Job) -> None:
        if job.name.startswith("evaluate"):
            model = trained_models.result_file(study.runs[0].recipe, folders.work)
            state = torch.load(model)
            # Whole, but of another network.
            checkpoint.save({**state, "model": {}}, model)
        do(job, folders)

    (failure,) = engines.serial(todo, damaging)
    assert "trained.pt: not a whole checkpoint" in failure.reason
    assert "set aside as trained.pt.damaged-1; the same command makes it anew" in failure.reason
    check(study, folders, whole)


WRONG_EVALUATIONS: dict[str, tuple[dict[str, Any], str]] = {
    "length": (
        {"right": {"clean": torch.ones(3, dtype=torch.bool)}},
        "clean: got torch.bool of shape (3,); expected torch.bool of shape (4,)",
    ),
    "type": (
        {"right": {"clean": torch.ones(4)}},
        "clean: got torch.float32 of shape (4,); expected torch.bool of shape (4,)",
    ),
    "number": ({"right": 3}, "right: got int; expected a dict"),
    "text": ({"right": {"clean": "x"}}, "clean: got str; expected torch.bool of shape (4,)"),
    "distances": (
        {"distances": torch.zeros(2)},
        "distances: got torch.float32 of shape (2,); expected torch.float32 of",
    ),
    "seconds": ({"seconds": {"clean": "x"}}, "seconds of clean: got str; expected a float"),
}


@pytest.mark.parametrize("wrong", WRONG_EVALUATIONS)
def test_a_whole_but_wrong_file_of_a_evaluation(wrong: str, study: Study, whole: Folders, tmp_path: Path, capsys):
    folders = Folders(tmp_path / "records", whole.work, progress=False)
    file = jobs._evaluated_file(study.runs[0], folders)
    content, message = WRONG_EVALUATIONS[wrong]
    checkpoint.save({"right": {}, "distances": None, "seconds": {}, "cpu_seconds": {}, **content}, file)
    (failure,) = run(study, folders)
    assert f"{file}: not a whole checkpoint (ValueError: {message}" in failure.reason
    assert f"set aside as {file.name}.damaged-" in failure.reason
    check(study, folders, whole)


@pytest.mark.parametrize("damage", ["cut", "list", "folder"])
def test_a_damaged_sibling_does_not_cost_the_attacks(damage: str, study: Study, whole: Folders, tmp_path: Path, capsys):
    (record,) = records.found(study.runs, whole.results)
    sibling = tmp_path / f"{record['name'].rsplit('-', 1)[0]}-000000.json"
    sibling.write_text(json.dumps(record))
    RECORD_DAMAGES[damage](sibling)
    path = records.save(record, tmp_path)
    assert records.load_document(path) == record
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("left where it is: ")
    assert str(sibling) in line
    assert sibling.exists()


RECORD_DAMAGES: dict[str, Damage] = {
    "cut": cut,
    "binary": lambda path: path.write_bytes(b"\xff\x00"),
    "empty": lambda path: path.write_bytes(b""),
    "list": lambda path: path.write_text("[]\n"),
    "lacks": lambda path: path.write_text('{"schema": 1}\n'),
    "another's": lambda path: path.write_text(path.read_text().replace('"name": "digits', '"name": "other', 1)),
    "no number": lambda path: path.write_text(
        json.dumps({**(found := json.loads(path.read_text())), "evaluation": {**found["evaluation"], "worst": None}})
    ),
    "folder": make_folder,
    "no blind share": changing("evaluation", "blind"),
    "null for the blind share": changing("evaluation", "blind", None),
    "no worst in L2": changing("evaluation", "l2_worst"),
    "empty recipe": changing("recipe", "data"),
    "no history": changing("training", "history", {}),
    "empty history": changing("training", "history", {"validation_accuracy": []}),
    "no revision": changing("revision", None, None),
}


@pytest.mark.parametrize("damage", RECORD_DAMAGES)
def test_a_damaged_record(damage: str, study: Study, whole: Folders, tmp_path: Path, capsys):
    folders = Folders(tmp_path / "records", whole.work, progress=False)
    (record,) = records.found(study.runs, whole.results)
    path = records.save(record, folders.results)
    RECORD_DAMAGES[damage](path)
    configuration_file = tmp_path / "one.yaml"
    configuration_file.write_text(ONE)
    where = ["--results", str(folders.results)]
    for command_name in ("table", "plot"):
        assert command.main([command_name, str(configuration_file), *where]) == 2
        assert f"{path}: " in capsys.readouterr().err
    assert path.exists()
    assert len(jobs_of(study.runs, folders)) == 1
    assert f"set aside as {path.name}.damaged-1" in capsys.readouterr().err
    assert not path.exists()
    check(study, folders, whole)


def test_a_record_of_another_schema_is_left_where_it_is(study: Study, whole: Folders, tmp_path: Path):
    (record,) = records.found(study.runs, whole.results)
    path = records.save({**record, "schema": 2}, tmp_path)
    with pytest.raises(ValueError, match="got schema 2; expected 1"):
        jobs_of(study.runs, Folders(tmp_path, whole.work))
    assert path.exists()
