from __future__ import annotations

import datetime
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.harness import machine as results
from benchmarks.harness.machine import Document, default_path, describe_device, load, new_document, save
from benchmarks.kernels import __main__ as command
from benchmarks.kernels import suite
from benchmarks.running import INTERRUPTED, OUT_OF_TIME
from dreluop.backends import native


def test_document_describes_the_run() -> None:
    made = new_document(3, quick=True)
    assert (made["threads"], made["quick"], made["complete"], made["rows"]) == (3, True, False, [])
    assert made["versions"]["torch"] == torch.__version__
    assert datetime.datetime.fromisoformat(made["date"]).utcoffset() == datetime.timedelta(0)
    assert made["backend"]["serves"] == ("native" if native.is_loaded() else "reference")
    assert made["backend"]["load_error"] == native.load_error
    assert made["device"]["name"] and made["device"]["cores"] >= 1


def test_a_gpu_is_named_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    assert describe_device(torch.device("cuda", 1))["name"] == "GPU 1"


def test_default_path_is_one_folder_per_device() -> None:
    path = default_path({"name": "Xeon(R) CPU @ 2.20GHz", "cores": 4, "transparent_hugepages": None})
    assert path == results.RESULTS / "xeon-r-cpu-2-20ghz-4-cores" / "kernels.json"


def test_saved_documents_load_again(tmp_path: Path) -> None:
    made = new_document(2, quick=False)
    save(made, tmp_path / "new" / "folder" / "kernels.json")
    assert load(tmp_path / "new" / "folder" / "kernels.json") == made


def test_a_crash_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "kernels.json"
    old = new_document(2, quick=False)
    save(old, path)

    def half(self: Path, text: str) -> int:
        self.write_bytes(text[: len(text) // 2].encode())
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(KeyboardInterrupt):
        save({**old, "threads": 7}, path)
    assert load(path) == old


def test_who_reads_while_it_is_written_gets_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "kernels.json"
    old = new_document(2, quick=False)
    save(old, path)
    with path.open() as reader:
        save({**old, "threads": 7}, path)
        assert json.load(reader) == old
    assert load(path)["threads"] == 7
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "no valid JSON"), ("[]", "got schema None; expected 1"), ('{"schema": 0}', "got schema 0; expected 1")],
)
def test_foreign_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "kernels.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)


@pytest.mark.usefixtures("tiny_suite")
class TestCommand:
    def test_complete_run(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "kernels.json"
        assert command.main(["--output", str(path), "--threads", "1"]) == 0
        made = load(path)
        assert made["complete"]
        assert made["threads"] == 1
        assert {(row["case"], row["dtype"]) for row in made["rows"]} == {
            ("tiny image", "float32"),
            ("tiny dense", "bfloat16"),
        }
        assert {row["threads"] for row in made["rows"]} == {1}
        printed = capsys.readouterr().out
        assert "tiny image: 2x3x4x5, fp32" in printed and "forward against clone" in printed and str(path) in printed

    def test_interruption_leaves_the_cases_that_were_done(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run_case = suite.run_case

        def interrupted(case: suite.Case, *arguments: object) -> object:
            if case.name == "tiny dense":
                raise KeyboardInterrupt
            return run_case(case, *arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(suite, "run_case", interrupted)
        path = tmp_path / "kernels.json"
        assert command.main(["--output", str(path)]) == INTERRUPTED
        made = load(path)
        assert not made["complete"]
        assert {row["case"] for row in made["rows"]} == {"tiny image"}
        assert f"{path} holds the cases that were done" in capsys.readouterr().err

    def test_interruption_before_the_first_case_keeps_the_old_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def interrupted(*_: object) -> list[suite.Row]:
            raise KeyboardInterrupt

        monkeypatch.setattr(suite, "run_case", interrupted)
        path = tmp_path / "kernels.json"
        path.write_text("old")
        assert command.main(["--output", str(path)]) == INTERRUPTED
        assert path.read_text() == "old"
        assert "holds" not in capsys.readouterr().err

    def test_cases_can_have_threads_of_their_own(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_cases: list[suite.Case]
    ) -> None:
        mixed = [tiny_cases[0], replace(tiny_cases[1], threads=1)]
        monkeypatch.setattr(command, "cases", lambda **_: mixed)
        path = tmp_path / "kernels.json"
        assert command.main(["--output", str(path), "--threads", "3"]) == 0
        found = {row["case"]: row["threads"] for row in load(path)["rows"]}
        assert found == {"tiny image": 3, "tiny dense": 1}

    def test_no_case_is_begun_after_the_limit(self, tmp_path: Path) -> None:
        path = tmp_path / "kernels.json"
        assert command.main(["--output", str(path), "--limit", "0"]) == OUT_OF_TIME
        assert not path.exists()

    def test_default_output(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(results, "RESULTS", tmp_path)
        assert command.main([]) == 0
        (path,) = tmp_path.glob("*/kernels.json")
        assert path == default_path(load(path)["device"])

    def test_quick_runs_do_not_replace_results(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(results, "RESULTS", tmp_path)
        assert command.main(["--quick"]) == 0
        assert list(tmp_path.iterdir()) == []

    def test_options_reach_the_choice_of_cases(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_cases: list[suite.Case]
    ) -> None:
        asked: list[dict[str, bool]] = []

        def choose(**options: bool) -> list[suite.Case]:
            asked.append(options)
            return tiny_cases[:1]

        monkeypatch.setattr(command, "cases", choose)
        command.main(["--quick", "--no-compile"])
        command.main(["--output", str(tmp_path / "kernels.json")])
        assert asked == [{"quick": True, "compiled": False}, {"quick": False, "compiled": True}]

    def test_some_cases_and_dtypes(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        measured: list[str] = []

        def measure(_: object, selected: list[suite.Case], output: Path | None, limit: float | None) -> int:
            assert output is None and limit is None
            measured.extend(case.name for case in selected)
            return 0

        monkeypatch.setattr(command, "measure", measure)
        command.main(["--cases", "tiny image", "tiny dense", "--dtypes", "bfloat16"])
        command.main(["--cases", "tiny image"])
        assert measured == ["tiny dense", "tiny image"]
        with pytest.raises(SystemExit, match="2"):
            command.main(["--cases", "tiny image", "--dtypes", "bfloat16"])
        assert "--cases, --dtypes: got names that no case has together" in capsys.readouterr().err

    def test_bad_number_of_threads(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit, match="2"):
            command.main(["--threads", "0"])
        assert "--threads: got 0; expected at least 1" in capsys.readouterr().err


def test_only_results_and_documents_may_differ_from_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    package = tmp_path / "benchmarks" / "kernels"
    package.mkdir(parents=True)
    monkeypatch.setattr(results, "__file__", str(package / "results.py"))
    git("init")
    (tmp_path / "code.py").write_text("1")
    git("add", ".")
    git("commit", "-m", "first")
    (tmp_path / "README.md").write_text("table")
    (tmp_path / "benchmarks" / "results").mkdir()
    (tmp_path / "benchmarks" / "results" / "kernels.json").write_text("{}")
    (tmp_path / "docs" / "pictures").mkdir(parents=True)
    (tmp_path / "docs" / "pictures" / "a.png").write_text("picture")
    clean = results.commit()
    assert clean is not None and len(clean["hash"]) == 40 and not clean["dirty"]
    (tmp_path / "code.py").write_text("2")
    assert results.commit() == {"hash": clean["hash"], "dirty": True}
    # A copy may lie beside the history of another commit, and the environment knows.
    monkeypatch.setenv(results.COMMIT_VARIABLE, "abc123")
    assert results.commit() == {"hash": "abc123", "dirty": False}


def test_no_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "__file__", str(tmp_path / "results.py"))
    monkeypatch.delenv(results.COMMIT_VARIABLE, raising=False)
    assert results.commit() is None
    for text, dirty in (("abc123", False), ("abc123-dirty", True)):
        monkeypatch.setenv(results.COMMIT_VARIABLE, text)
        assert results.commit() == {"hash": "abc123", "dirty": dirty}


def test_documents_are_plain_json() -> None:
    made: Document = new_document(2, quick=False)
    assert json.loads(json.dumps(made)) == made
