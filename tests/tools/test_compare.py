from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.bench_kernels import BENCH
from benchmarks.harness import implementations as c
from benchmarks.harness.activations import HOT, Visit, measure
from benchmarks.harness.machine import Platform
from benchmarks.harness.workloads import Case
from tests.benchmarks.conftest import BUDGET, Processor
from tools import compare
from tools.compare import USAGE


def row(ms: float, spread: float = 0.1, **changes: Any) -> dict[str, Any]:
    made = {"case": "images", "dtype": "float32", "pass": "forward", "implementation": "dreluop"}
    return {**made, "ms": ms, "q1_ms": ms * (1 - spread), "q3_ms": ms * (1 + spread), **changes}


def document(*rows: dict[str, Any]) -> dict[str, Any]:
    return {"suite": "kernels", "device": {"name": "A", "cores": 2}, "rows": list(rows)}


def text(*rows: dict[str, Any], **changes: Any) -> str:
    """A record."""
    run = {"id": "run", "suite": "kernels", "device": {"name": "A", "cores": 2}, **changes}
    lines = [{"run": run}, *({"run": "run", "key": {"case": one["case"]}, **one} for one in rows)]
    return "".join(f"{json.dumps(line)}\n" for line in lines)


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        (row(10), row(13), "slower"),
        (row(10), row(12), "same"),  # quartiles overlap: 11 and 10.8
        (row(10, 0.001), row(10.1, 0.001), "same"),  # within the tolerance
        (row(10, 0.001), row(10.3, 0.001), "slower"),
        (row(10), row(7), "faster"),
        (row(10), row(9), "same"),
        (row(10, 0.001), row(9.9, 0.001), "same"),
        (row(10, 0.5), row(14, 0.01), "same"),
    ],
)
def test_a_change_is_what_noise_does_not_explain(old: dict[str, Any], new: dict[str, Any], kind: str) -> None:
    assert compare.compare(document(old), document(new))["kind"].item() == kind


def test_noise_is_that_of_the_noisier_run() -> None:
    rows = compare.compare(document(row(10, 0.1)), document(row(5, 0.25)))
    assert rows["noise"].item() == pytest.approx(0.5)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Two files: one row much slower, one a little, one faster, one the same, one new, one gone."""
    old = text(
        row(10, implementation="clamp"),
        row(10),
        row(10, dtype="bfloat16"),
        row(10, implementation="copy_"),
        {**row(10), "pass": "backward"},
        row(1, case="gone"),
    )
    new = text(
        row(14, implementation="clamp"),
        row(30),
        row(5, dtype="bfloat16"),
        row(10.5, implementation="copy_"),
        {**row(10), "pass": "backward"},
        row(1, case="new"),
        row(1, case="newer"),
    )
    paths = tmp_path / "old.jsonl", tmp_path / "new.jsonl"
    for path, made in zip(paths, (old, new), strict=True):
        path.write_text(made)
    return paths


def test_regressions_come_first_with_their_noise(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main([str(path) for path in files]) == 0
    lines = capsys.readouterr().out.splitlines()
    kinds = [line.split()[0] for line in lines if line.split()[0] in ("slower", "faster")]
    assert kinds == ["slower", "slower", "faster"]
    first, second = (line for line in lines if line.startswith("slower"))
    assert "dreluop" in first and "3.00" in first and "20%" in first and first.endswith("1.05")
    assert "clamp" in second and "1.40" in second
    assert "2 slower, 1 faster, 2 the same within noise and 2%" in lines
    assert "only in the old file: 1 rows; only in the new: 2" in lines


def test_exit_code(files: tuple[Path, Path]) -> None:
    old, new = map(str, files)
    assert compare.main([old, new, "--fail"]) == 1
    assert compare.main([old, new, "--fail", "--tolerance", "5"]) == 0
    assert compare.main([old, old, "--fail"]) == 0


def test_other_devices_are_refused_unless_forced(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    old, new = files
    first, *others = new.read_text().splitlines()
    run = json.loads(first)["run"]
    for other in ({"name": "B", "cores": 2}, {"name": "A", "cores": 4}, {"name": "A", "type": "cuda"}):
        new.write_text("\n".join([json.dumps({"run": {**run, "device": other}}), *others]))
        assert compare.main([str(old), str(new), "--fail"]) == USAGE
        assert "device: got A, 2 cores and " in capsys.readouterr().err
        assert compare.main([str(old), str(new), "--fail", "--force"]) == 1
        capsys.readouterr()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("{", "no valid record"),
        ("[]", "no valid record"),
        (text({"case": "a", "ms": 1}), "rows without q1_ms, q3_ms"),
        (text(row(1, case="other")), "the files share none"),
        (text(row(1), suite="other"), "suite: got kernels and other"),
    ],
)
def test_files_that_cannot_be_compared(
    files: tuple[Path, Path], given: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = files
    new.write_text(given)
    assert compare.main([str(old), str(new)]) == USAGE
    assert message in capsys.readouterr().err
    assert compare.main([str(old), str(new.with_name("absent.json"))]) == USAGE


def test_rows_of_a_case_are_distinguished(tmp_path: Path) -> None:
    cases = [Case("a", "neuron", (4, 8), dtype, (c.OURS.name,)) for dtype in (torch.float32, torch.float64)]
    cases.append(replace(cases[0], threads=1))
    record = BENCH.new_record(Platform())
    for case in cases:
        rows = measure(replace(case, threads=case.threads or 2), [Visit(HOT)], BUDGET, Processor())
        record.add(case.label, rows, BENCH.key)
    record.save(tmp_path / "some.jsonl")
    made = compare.load(tmp_path / "some.jsonl")
    slower = copy.deepcopy(made)
    for one in slower["rows"]:
        one.update({key: one[key] * 2 for key in ("ms", "q1_ms", "q3_ms")})
    compared = compare.compare(made, slower)
    assert list(compared["found_in"]) == ["both"] * len(record.rows)
    assert set(compared["ratio"]) == {2}
