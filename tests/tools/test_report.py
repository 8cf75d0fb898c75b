from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.bench_kernels import BENCH
from benchmarks.harness.activations import HOT, Visit, measure
from benchmarks.harness.cli import Bench
from benchmarks.harness.machine import Platform
from benchmarks.harness.records import Record, load
from tests.benchmarks.conftest import BUDGET, CASES, EAGER, Processor
from tools import report

BEGIN, END = "<!-- report:kernels:begin -->", "<!-- report:kernels:end -->"


@pytest.fixture(scope="module")
def record() -> Record:
    """What measuring a tiny case gave."""
    made = BENCH.new_record(Platform())
    case = replace(CASES[0], implementations=EAGER, threads=made.run["settings"]["threads"])
    made.add(case.label, measure(case, [Visit(HOT)], BUDGET, Processor()), BENCH.key)
    return made


@pytest.fixture
def folder(tmp_path: Path, record: Record, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Records of one device."""
    monkeypatch.setattr(Bench, "missing", lambda *_: [])
    record.save(tmp_path / "results" / "some-device" / BENCH.file_name)
    return tmp_path / "results"


@pytest.fixture
def document(tmp_path: Path, folder: Path) -> Path:
    """A document that is up to date."""
    path = tmp_path / "README.md"
    path.write_text(f"# Title\n{BEGIN}\nold\n{END}\nlast line\n")
    assert report.main([str(path), "--results", str(folder)]) == 0
    return path


def check(document: Path, folder: Path) -> int:
    return report.main([str(document), "--results", str(folder), "--check"])


def test_the_report_replaces_what_stands_between_the_marks(document: Path, folder: Path) -> None:
    text = document.read_text()
    assert text.startswith(f"# Title\n{BEGIN}\n") and text.endswith(f"{END}\nlast line\n")
    assert "old" not in text.split(BEGIN)[1].split(END)[0].splitlines()
    assert re.search(r"\| tiny image \| 2x3x4x5 \| fp32 \| [\d.e-]+ \|", text)
    assert "| forward against clone | >= 64 MiB | <= 1.05 x |" in text
    assert check(document, folder) == 0


def test_writing_again_changes_nothing(document: Path, folder: Path) -> None:
    before = document.read_text()
    assert report.main([str(document), "--results", str(folder)]) == 0
    assert document.read_text() == before


def test_check_detects_a_figure_changed_by_hand(
    document: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = document.read_text()
    figure = re.search(r"\| tiny image \| 2x3x4x5 \| fp32 \| ([\d.e-]+) \|", text)
    assert figure is not None
    changed = f"{text[: figure.start(1)]}0.123{text[figure.end(1) :]}"
    document.write_text(changed)
    assert check(document, folder) == 1
    assert "not what the records give" in capsys.readouterr().err
    assert document.read_text() == changed, "a check must not write"


def test_check_detects_a_changed_record(document: Path, folder: Path) -> None:
    (path,) = folder.glob("*/*.jsonl")
    made = load(path)
    for row in made.rows:
        if (row["key"]["implementation"], row["key"]["pass"]) == ("dreluop", "forward"):
            row["ms"] *= 2
    made.save(path)
    assert check(document, folder) == 1


def test_an_interrupted_or_quick_run_says_so(document: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "missing" not in document.read_text() and "quick" not in document.read_text()
    (path,) = folder.glob("*/*.jsonl")
    made = load(path)
    made.run["settings"]["quick"] = True
    made.save(path)
    monkeypatch.setattr(Bench, "missing", lambda *_: ["a case"])
    assert report.main([str(document), "--results", str(folder)]) == 0
    assert "not all cases: 1 missing" in document.read_text() and "quick run" in document.read_text()


def test_every_device_is_reported(document: Path, folder: Path) -> None:
    (path,) = folder.glob("*/*.jsonl")
    made = load(path)
    made.run["device"]["name"] = "Another device"
    made.save(folder / "another-device" / BENCH.file_name)
    assert report.main([str(document), "--results", str(folder)]) == 0
    text = document.read_text()
    assert text.count("| tiny image | 2x3x4x5 |") == 2
    assert "Another device" in text


def test_without_results(document: Path, tmp_path: Path) -> None:
    assert report.main([str(document), "--results", str(tmp_path / "none")]) == 0
    assert "Nothing has been measured yet." in document.read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no marks\n", f"marks none of the reports {', '.join(report.REPORTS)}"),
        (f"{BEGIN}\n", "got 1 and 0"),
        (f"{END}\n{BEGIN}\n", "got 1 and 1"),
        (f"{BEGIN}\n{END}\n{BEGIN}\n{END}\n", "got 2 and 2"),
    ],
)
@pytest.mark.parametrize("options", [[], ["--check"]], ids=["write", "check"])
def test_bad_marks(
    tmp_path: Path, folder: Path, text: str, message: str, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.md"
    path.write_text(text)
    assert report.main([str(path), "--results", str(folder), *options]) == 1
    assert message in capsys.readouterr().err
    assert path.read_text() == text


def test_missing_document_and_invalid_results(
    tmp_path: Path, document: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report.main([str(tmp_path / "absent.md"), "--results", str(folder)]) == 1
    assert "absent.md" in capsys.readouterr().err
    (path,) = folder.glob("*/*.jsonl")
    path.write_text("{")
    assert check(document, folder) == 1
    assert "no valid record" in capsys.readouterr().err


def test_every_document_with_marks_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "benchmarks" / "part").mkdir(parents=True)
    marks = "<!-- report:models:begin -->\n<!-- report:models:end -->\n"
    for name, text in (
        ("README.md", marks),
        ("docs/a.md", "no marks\n"),
        ("docs/b.md", marks),
        ("benchmarks/part/README.md", marks),
    ):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(report, "ROOT", tmp_path)
    expected = [tmp_path / "README.md", tmp_path / "docs" / "b.md", tmp_path / "benchmarks" / "part" / "README.md"]
    assert report.marked_documents() == expected
    options = ["--results", str(tmp_path)]
    assert report.main(options) == 0
    assert report.main([*options, "--check"]) == 0
    assert (tmp_path / "docs" / "a.md").read_text() == "no marks\n"
    (tmp_path / "docs" / "b.md").write_text(marks)
    assert report.main([*options, "--check"]) == 1
