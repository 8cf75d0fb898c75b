"""tune(): what it tries, what it keeps, and files that are not its own."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from dreluop.backends import triton as backend
from dreluop.backends.triton import plan, tuning
from dreluop.backends.triton.plan import Tuning

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tuning, "_chosen", {})
    yield tmp_path / "dreluop"


def test_the_best_is_used_and_kept(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def measure(call: object) -> float:
        now = tuning.for_device(CPU)
        calls.append(now)
        return abs(now.flat_tile - 128) + abs(now.row_programs - 8) + abs(now.column_warps - 8)

    best = backend.tune("cpu", measure=measure, mebibytes=1)
    assert (best.flat_tile, best.row_programs, best.column_warps) == (128, 8, 8)
    assert tuning.for_device(CPU) == best
    assert len(set(calls)) > 20
    (file,) = cache_folder.iterdir()
    assert file == tuning.cache_file("cpu")
    assert tuning.read(file) == best
    assert json.loads(file.read_text())["milliseconds"].keys() == tuning.CANDIDATES.keys()


def test_what_is_measured_runs_every_kind_of_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = tuning._passes(CPU, 1)
    assert passes.keys() == tuning.CANDIDATES.keys()
    ran = [call() for kind in passes.values() for call in kind[:1]]
    assert len(ran) == 3


def test_a_failed_measurement_changes_nothing(cache_folder: Path) -> None:
    def fails(call: object) -> float:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        backend.tune("cpu", measure=fails, mebibytes=1)
    assert tuning.for_device(CPU) == plan.INTERPRETER
    assert not cache_folder.exists()


def test_without_a_gpu() -> None:
    with pytest.raises(
        RuntimeError, match=r'tune: needs a GPU that Triton serves, got device "cuda": TRITON_INTERPRET=1'
    ):
        backend.tune()
    with pytest.raises(RuntimeError, match=r'got device "cpu": the interpreter\'s times say nothing'):
        backend.tune("cpu")


def test_every_candidate_is_legal() -> None:
    for candidates in tuning.CANDIDATES.values():
        for candidate in candidates:
            Tuning(**{**asdict(Tuning()), **candidate})


GOOD = {"format": tuning.FORMAT, "tuning": asdict(Tuning())}
BAD = {
    "empty": "",
    "not json": "{",
    "a list": "[]",
    "another format": json.dumps({**GOOD, "format": 0}),
    "nothing else": json.dumps({"format": tuning.FORMAT}),
    "a number missing": json.dumps({**GOOD, "tuning": {"flat_tile": 256}}),
    "a number too many": json.dumps({**GOOD, "tuning": {**asdict(Tuning()), "more": 1}}),
    "a tile of 100": json.dumps({**GOOD, "tuning": {**asdict(Tuning()), "flat_tile": 100}}),
    "a text": json.dumps({**GOOD, "tuning": {**asdict(Tuning()), "waves": "4"}}),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_is_not_ours_is_reported_and_ignored(tmp_path: Path, name: str) -> None:
    path = tmp_path / "tuning.json"
    path.write_text(BAD[name])
    with pytest.warns(UserWarning, match=r"tuning.json: not a tuning of this version of dreluop, ignored"):
        assert tuning.read(path) is None


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "tuning.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.warns(UserWarning, match="UnicodeDecodeError"):
        assert tuning.read(path) is None


def test_a_good_file_or_none_is_silent(tmp_path: Path) -> None:
    path = tmp_path / "tuning.json"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tuning.read(path) is None
        tuning.write(path, Tuning(waves=3), {"flat": 1.0})
        assert tuning.read(path) == Tuning(waves=3)
    assert [file.name for file in tmp_path.iterdir()] == ["tuning.json"]


def test_the_file_is_named_after_the_device_and_the_versions(cache_folder: Path) -> None:
    import triton  # noqa: PLC0415

    import dreluop  # noqa: PLC0415

    name = f"triton-NVIDIA-H100-80GB-HBM3-dreluop-{dreluop.__version__}-triton-{triton.__version__}.json"
    assert tuning.cache_file("NVIDIA H100 80GB HBM3") == cache_folder / name
