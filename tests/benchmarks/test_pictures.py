"""The pictures of records: each is drawn, of whole records and of empty ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import bench_depth, bench_kernels, bench_scaling
from benchmarks.bench_scaling import CAPS, SIZE, Point
from benchmarks.harness import implementations as c
from benchmarks.harness.activations import BACKWARD, FORWARD, HOT, LARGE, Visit, measure
from benchmarks.harness.cli import Run
from benchmarks.harness.files import save_document
from benchmarks.harness.machine import Platform
from benchmarks.harness.records import Record
from benchmarks.harness.workloads import Case
from studies.drelu_paper.statistics.document import of_paper
from tests.benchmarks.conftest import BUDGET, EAGER, GPU, Processor
from tools import report

pytest.importorskip("matplotlib")
from matplotlib import image, pyplot

from benchmarks import pictures

NAMES = ["roofline", "speed-up", "scaling", "memory-over-depth", "critical-difference"]


@pytest.fixture(scope="module")
def records() -> dict[str, Record]:
    """A small record of each benchmark."""
    kernels, over, memory = (one.BENCH.new_record(Platform()) for one in (bench_kernels, bench_scaling, bench_depth))
    threads = kernels.run["settings"]["threads"]
    case = Case("tiny", "channel", (2, 3, 4, 5), torch.float32, EAGER, threads=threads)
    rows = measure(case, [Visit(HOT)], BUDGET, Processor())
    kernels.add(case.label, [{**row, "x_bytes": LARGE} for row in rows], bench_kernels.BENCH.key)
    shapes = [(SIZE, (n, 3, 2, 2)) for n in (4, 16, 64)] + [(CAPS, (8, caps, 2, 2)) for caps in (1, 4)]
    for axis, shape in shapes:
        for dtype in (torch.bfloat16, torch.float32):
            point = Point(str(shape), "channel", shape, dtype, EAGER, axis=axis, modes=(HOT,), threads=2)
            found = measure(point, [Visit(HOT, facts=False)], BUDGET, Processor())
            over.add(point.label, [{**row, "axis": axis} for row in found], bench_scaling.BENCH.key)
    for chain in bench_depth.cases("cpu", {}):
        memory.add(chain.label, bench_depth.run(chain, Run(Platform())), bench_depth.BENCH.key)
    return {"kernels": kernels, "scaling": over, "memory": memory}


def test_every_picture_is_drawn_and_named_in_the_document(
    tmp_path: Path, records: dict[str, Record], capsys: pytest.CaptureFixture[str]
) -> None:
    for name, record in records.items():
        record.save(tmp_path / "results" / "some-device" / f"{name}.jsonl")
    save_document(of_paper([2], 0.05, "error"), tmp_path / "results" / "some-device" / "statistics.json")
    document = tmp_path / "speed.md"
    document.write_text("<!-- report:pictures:begin -->\n<!-- report:pictures:end -->\n")
    options = [str(document), "--results", str(tmp_path / "results"), "--pictures", str(tmp_path / "pictures")]
    assert report.main([*options, "--check"]) == 1
    assert not (tmp_path / "pictures").exists(), "a check must not draw"
    assert report.main(options) == 0
    paths = [tmp_path / "pictures" / f"some-device-{name}.png" for name in NAMES]
    assert capsys.readouterr().out.splitlines() == [f"drawn: {path}" for path in paths]
    text = document.read_text()
    for name, path in zip(NAMES, paths, strict=True):
        # Something is drawn: not one color.
        assert image.imread(path)[..., :3].std() > 0.01
        # That of the statistics is named in the text of its document.
        assert (f"](pictures/{path.name})" in text) == (name != "critical-difference")
    assert "`benchmarks/results/some-device/memory.jsonl`" in text
    assert pyplot.get_fignums() == [], "figures are closed"
    assert set(pictures.DRAW) == set(report.PICTURES)


def test_pictures_are_left_alone_where_other_results_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "FOLDER", tmp_path / "untouched")
    document = tmp_path / "speed.md"
    document.write_text("<!-- report:pictures:begin -->\n<!-- report:pictures:end -->\n")
    assert report.main([str(document), "--results", str(tmp_path)]) == 0
    assert not (tmp_path / "untouched").exists()


@pytest.mark.parametrize("name", ["kernels", "scaling"])
def test_a_gpu_has_its_own_styles(name: str, tmp_path: Path, records: dict[str, Record]) -> None:
    made = records[name]
    rows = [{**row, "threads": None, "bias_and_residual": ""} for row in made.rows]
    of_gpu = Record([{**made.run, "device": GPU}], rows)
    of_gpu.save(tmp_path / "some-gpu" / f"{name}.jsonl")
    assert len(report.draw(tmp_path, tmp_path / "pictures")) == {"kernels": 1, "scaling": 2}[name]
    if name == "scaling":
        assert "| CUDA graphs | fp32 | forward |" in report.REPORTS["scaling"](tmp_path)


def test_shares_of_a_processor_are_against_a_clone() -> None:
    row = {
        **{"x_bytes": LARGE, "threads": 2, "floor": c.CLONE, "floor_ms": 10.0, "dtype": "float32"},
        **{"implementation": c.OURS.name, "pass": BACKWARD, "ms": 20.0, "min_bytes": 3 * LARGE, "mode": "cold"},
    }
    others = {
        "alone": {**row, "threads": 1},
        "in place": {**row, "floor": c.COPY},
        "small": {**row, "x_bytes": LARGE - 1},
        "forward": {**row, "pass": FORWARD, "min_bytes": 2 * LARGE},
    }
    record = bench_kernels.BENCH.new_record(Platform())
    record.run["settings"]["threads"] = 2
    for case, one in {"first": row, **others}.items():
        record.add(case, [one], bench_kernels.BENCH.key)
    found = pictures._shares(record, on_gpu=False)
    assert dict(zip(found["pass"], found["share"], strict=True)) == pytest.approx({BACKWARD: 0.75, FORWARD: 0.5})
    assert len(found) == 2
