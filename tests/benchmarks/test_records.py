"""Records: what a file holds, whole or not, and what a run that resumes takes over, measures again, or refuses."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import MODULES, bench_of
from benchmarks.harness.files import DamagedFileError
from benchmarks.harness.machine import RESULTS
from benchmarks.harness.records import Record, load, new_record


@dataclass(frozen=True)
class Case:
    label: str
    implementations: tuple[str, ...] = ("x", "y")


CASES = [Case("a"), Case("b"), Case("c"), Case("d", ())]


def new(day: int = 9, **changes: Any) -> Record:
    run = {
        "id": f"run{day}", "suite": "some", "date": f"2026-01-0{day}T00:00:00+00:00", "device": {"name": "gpu"},
        "versions": {"torch": "2"}, "commit": {"hash": str(day) * 40, "dirty": False}, "settings": {"quick": False},
    }  # fmt: skip
    return Record([{**run, **changes}])


def filled(record: Record, case: str, names: str = "xy") -> Record:
    record.add(case, [{"implementation": name, "pass": "forward", "ms": 1.5} for name in names], ("implementation",))
    return record


def former(**changes: Any) -> Record:
    record = filled(filled(new(1, **changes), "a"), "b")
    record.add("d", [{"ms": 1}], ())
    return record


def test_keys_and_values() -> None:
    record = filled(new(), "a", "x")
    record.add("a", [{"implementation": "y", "failure": "why"}], ("implementation",))
    key = {"case": "a", "implementation": "x"}
    assert record.rows == [{"run": "run9", "key": key, "pass": "forward", "ms": 1.5}]
    assert record.failures == [{"run": "run9", "key": {"case": "a", "implementation": "y"}, "failure": "why"}]
    (row,) = record.frame().to_dict("records")
    assert row == {"case": "a", "implementation": "x", "run": "run9", "pass": "forward", "ms": 1.5}


def test_a_new_record_describes_the_moment() -> None:
    record = new_record("some", {"name": "A", "cores": 2}, {"torch": "2"}, quick=True)
    assert set(record.run) == {"id", "suite", "date", "device", "versions", "commit", "settings"}
    assert record.run["settings"] == {"quick": True} and record.run["date"].endswith("+00:00")
    assert json.loads(json.dumps(record.run)) == record.run


def test_saved_records_load_again_line_by_line(tmp_path: Path) -> None:
    record = former()
    record.add("c", [{"implementation": None, "failure": "why"}], ("implementation",))
    path = tmp_path / "new" / "folder" / "some.jsonl"
    record.save(path)
    assert load(path) == record
    first, *others = map(json.loads, path.read_text().splitlines())
    assert first == {"run": record.run} and len(others) == 6 and all("key" in line for line in others)


def test_a_crash_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "some.jsonl"
    old = former()
    old.save(path)

    def half(self: Path, text: str) -> int:
        self.write_bytes(text[: len(text) // 2].encode())
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(KeyboardInterrupt):
        filled(former(), "c").save(path)
    assert load(path) == old


def test_who_reads_while_it_is_written_gets_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "some.jsonl"
    former().save(path)
    with path.open() as reader:
        filled(former(), "c").save(path)
        assert len(reader.read().splitlines()) == 1 + len(former().rows)
    assert len(load(path).rows) == len(former().rows) + 2
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("text", ["{", "[]", "{}", '"text"', "", '{"schema": 1}', '{"key": {}}'])
def test_foreign_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "some.jsonl"
    path.write_text(text)
    with pytest.raises(DamagedFileError, match="no valid record") as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_what_was_measured_whole_is_taken_over() -> None:
    made = new()
    assert made.resume(former(), CASES) == [CASES[2]]
    assert made.rows == former().rows
    assert [run["id"] for run in made.runs] == ["run1", "run9"]


def _failed() -> Record:
    record = former()
    record.add("b", [{"implementation": "y", "failure": "why"}], ("implementation",))
    return record


def _without_an_implementation() -> Record:
    record = former()
    record.rows.remove(next(row for row in record.rows if row["key"] == {"case": "b", "implementation": "y"}))
    return record


def _cut_short() -> Record:
    record = former()
    next(row for row in record.rows if row["key"]["case"] == "b")["ended"] = False
    return record


@pytest.mark.parametrize("make", [_failed, _without_an_implementation, _cut_short])
def test_what_was_not_is_measured_again_as_a_whole(make: Any) -> None:
    made = new()
    assert made.resume(make(), CASES) == CASES[1:3]
    assert {row["key"]["case"] for row in made.rows} == {"a", "d"} and made.failures == []


def test_cases_that_are_not_asked_for_are_kept() -> None:
    made = new()
    assert made.resume(_failed(), CASES[:1]) == []
    assert {row["key"]["case"] for row in made.rows} == {"a", "b", "d"} and len(made.failures) == 1


def test_each_run_keeps_its_cases_unless_they_are_measured_again() -> None:
    second = new(2)
    second.resume(filled(new(1), "a"), CASES)
    filled(second, "b")
    third = new(3)
    assert third.resume(second, CASES) == CASES[2:]
    assert [row["run"] for row in third.rows] == ["run1", "run1", "run2", "run2"]
    second.failures.append({"run": "run2", "key": {"case": "a", "implementation": "x"}, "failure": "why"})
    third = new(3)
    assert third.resume(second, CASES) == [CASES[0], *CASES[2:]]
    assert [run["id"] for run in third.runs] == ["run2", "run3"], "no row is left of the first run"


def test_where_nothing_is_left_the_record_is_the_former_one() -> None:
    before = filled(former(), "c")
    made = new()
    assert made.resume(before, CASES) == []
    assert made == before


def test_the_headline_says_when() -> None:
    assert former().when() == "2026-01-01"
    made = new()
    made.resume(former(), CASES)
    assert made.when() == "in several runs: 3 cases on 2026-01-01 (1111111111)"
    filled(made, "c")
    shown = "in several runs: 3 cases on 2026-01-01 (1111111111), 1 cases on 2026-01-09 (9999999999)"
    assert made.when() == shown
    made.runs[0]["commit"] = None
    assert "3 cases on 2026-01-01 (no commit known)" in made.when()


def test_missing_cases_have_neither_rows_nor_failures() -> None:
    assert former().missing(CASES) == [CASES[2]]
    record = former()
    record.add("c", [{"implementation": None, "failure": "why"}], ("implementation",))
    assert record.missing(CASES) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": {"name": "other"}}, "resume: got device {'name': 'other'}; expected what is measured now, "),
        ({"versions": {}}, "resume: got versions {}; expected what is measured now, {'torch': '2'}"),
        ({"settings": {"quick": True}}, "resume: got settings {'quick': True}; expected what is measured now, "),
        ({"suite": "another"}, "resume: got suite another; expected what is measured now, some"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_refused(changes: dict[str, Any], message: str) -> None:
    made = new()
    with pytest.raises(ValueError, match="resume: ") as caught:
        made.resume(former(**changes), CASES)
    assert str(caught.value).startswith(message)
    assert made == new()


COMMITTED = sorted(path for path in RESULTS.glob("*/*.jsonl") if path.stem in MODULES)


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_committed_records_can_be_gone_on_from(path: Path) -> None:
    before = load(path)
    bench = bench_of(before.run["suite"])
    kind = "cuda" if "capability" in before.run["device"] else "cpu"
    cases = bench.cases(kind, before.run["settings"])
    assert len({case.label for case in cases}) == len(cases), "cases have names of their own"
    keys = [json.dumps(row["key"]) for row in before.rows]
    assert len(set(keys)) == len(keys), "and so have rows"
    assert {row["key"]["case"] for row in before.rows} <= {case.label for case in cases}
    made = Record([{**copy.deepcopy(before.run), "id": "new"}])
    left = {case.label for case in made.resume(before, cases)}
    assert left >= set(bench.missing(before)) and len(left) < len(cases)
    assert made.rows == [row for row in before.rows if row["key"]["case"] not in left]


def test_every_name_has_its_benchmark() -> None:
    assert [bench_of(name).name for name in MODULES] == list(MODULES)
