"""The pictures of result files: what they record, and that a check finds what is not what the files give."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import depth, report
from benchmarks.harness import machine as results
from benchmarks.harness.interleave import Budget
from benchmarks.kernels import suite
from benchmarks.kernels.targets import THREADS
from benchmarks.pictures import gallery
from benchmarks.pictures.source import Source, recorded
from benchmarks.running import run_cases
from benchmarks.scaling import suite as scaling
from benchmarks.scaling.cases import CAPS, SIZE, Point
from benchmarks.scaling.document import new_document
from benchmarks.scaling.platforms import platform_of
from studies.drelu_paper.statistics.document import of_paper

pytest.importorskip("matplotlib")
from matplotlib import image, pyplot

BUDGET = Budget(seconds=0, min_samples=2, max_samples=2, warmup=1, sample_seconds=0)
NAMES = ["roofline", "speed-up", "scaling", "memory-over-depth", "critical-difference"]


@pytest.fixture(scope="session")
def documents() -> dict[str, Any]:
    """One small document of each suite."""
    kernels = results.new_document(THREADS, quick=False)
    case = suite.Case("tiny", "channel", (2, 3, 4, 5), torch.float32, suite.EAGER, threads=THREADS)
    kernels["rows"] = suite.run_case(case, BUDGET)[0]
    for row in kernels["rows"]:
        row["x_bytes"] = suite.LARGE
    platform = platform_of("cpu")
    over = new_document(platform.machine, quick=False)
    shapes = [(SIZE, (n, 3, 2, 2)) for n in (4, 16, 64)] + [(CAPS, (8, caps, 2, 2)) for caps in (1, 4)]
    for axis, shape in shapes:
        for dtype in (torch.bfloat16, torch.float32):
            point = Point("", "channel", shape, dtype, suite.EAGER, axis=axis, modes=(suite.HOT_MODE,), threads=2)
            over["rows"] += scaling.run_point(point, BUDGET, platform)[0]
    memory = depth.new_document()
    cases = [(chain, name) for chain in depth.CHAINS for name in depth.ACTIVATIONS]
    run_cases(memory, cases, lambda one: ([depth.row_of(*one, n) for n in (1, 2)], []), None, name=str)
    statistics = of_paper([2], 0.05, "error")
    return {"kernels.json": kernels, "scaling.json": over, "memory.json": memory, "statistics.json": statistics}


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory, documents: dict[str, Any]) -> Path:
    """Results of one device, and their pictures."""
    folder = tmp_path_factory.mktemp("drawn")
    for name, document in documents.items():
        results.save(document, folder / "results" / "some-device" / name)
    written = gallery.update(folder / "results", folder / "pictures")
    assert [path.name for path in written] == [f"some-device-{name}.png" for name in NAMES]
    return folder


@pytest.fixture
def folders(tmp_path: Path, drawn: Path) -> tuple[Path, Path]:
    """A copy of them: results, and a folder of pictures that are up to date."""
    shutil.copytree(drawn, tmp_path, dirs_exist_ok=True)
    return tmp_path / "results", tmp_path / "pictures"


def test_pictures_record_their_source(folders: tuple[Path, Path]) -> None:
    found, pictures = folders
    for kind in gallery.SPEED:
        path = pictures / f"some-device-{kind.name}.png"
        digest = hashlib.sha256((found / "some-device" / kind.file).read_bytes()).hexdigest()
        assert recorded(path) == f"some-device/{kind.file} sha256:{digest}"
        # Something is drawn: not one color.
        assert image.imread(path)[..., :3].std() > 0.01
    assert pyplot.get_fignums() == [], "figures are closed"


def test_nothing_is_drawn_twice(folders: tuple[Path, Path]) -> None:
    found, pictures = folders
    assert gallery.problems(found, pictures) == []
    assert gallery.update(found, pictures) == []
    assert len(gallery.update(found, pictures, again=True)) == len(NAMES)


def test_a_changed_result_is_found_and_drawn_anew(folders: tuple[Path, Path]) -> None:
    found, pictures = folders
    path = found / "some-device" / "scaling.json"
    made = json.loads(path.read_text())
    made["rows"][0]["ms"] *= 2
    results.save(made, path)
    wrong = gallery.problems(found, pictures)
    assert [Path(line.split(":")[0]).name for line in wrong] == ["some-device-speed-up.png", "some-device-scaling.png"]
    assert {path.name for path in gallery.update(found, pictures)} == {
        "some-device-speed-up.png",
        "some-device-scaling.png",
    }
    assert gallery.problems(found, pictures) == []


def test_missing_and_left_over_pictures_are_found(folders: tuple[Path, Path]) -> None:
    found, pictures = folders
    (pictures / "some-device-roofline.png").unlink()
    (found / "some-device" / "memory.json").unlink()
    wrong = gallery.problems(found, pictures)
    assert len(wrong) == 2
    assert "some-device-roofline.png: missing" in wrong[0]
    assert "some-device-memory-over-depth.png" in wrong[1] and "no longer drawn" in wrong[1]


def test_a_picture_that_was_changed_by_hand_is_found(folders: tuple[Path, Path]) -> None:
    found, pictures = folders
    path = pictures / "some-device-roofline.png"
    figure = pyplot.figure()
    figure.savefig(path)
    pyplot.close(figure)
    (line,) = gallery.problems(found, pictures)
    assert "shows None" in line


def test_other_pictures_are_left_alone(folders: tuple[Path, Path]) -> None:
    found, pictures = folders
    figure = pyplot.figure()
    figure.savefig(pictures / "block.png")
    pyplot.close(figure)
    assert gallery.problems(found, pictures) == []


def test_files_without_rows_can_be_drawn(folders: tuple[Path, Path]) -> None:
    found, pictures = folders
    for path in found.glob("*/*.json"):
        results.save({**json.loads(path.read_text()), "rows": []}, path)
    # The picture of the statistics records no source: it is drawn again on demand only.
    assert len(gallery.update(found, pictures)) == len(gallery.SPEED)
    assert len(gallery.update(found, pictures, again=True)) == len(NAMES)


MARKS = "".join(f"<!-- report:{name}:begin -->\n<!-- report:{name}:end -->\n" for name in ("scaling", "pictures"))


def test_report_and_check(folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, pictures = folders
    document = tmp_path / "speed.md"
    document.write_text(MARKS)
    options = [str(document), "--results", str(found), "--pictures", str(pictures)]
    (pictures / "some-device-roofline.png").unlink()
    assert report.main([*options, "--check"]) == 1
    errors = capsys.readouterr().err
    assert "some-device-roofline.png: missing" in errors and "speed.md: not what the result files give" in errors
    assert not (pictures / "some-device-roofline.png").exists(), "a check must not draw"
    assert report.main(options) == 0
    assert capsys.readouterr().out == f"drawn: {pictures / 'some-device-roofline.png'}\n"
    assert report.main([*options, "--check"]) == 0
    text = document.read_text()
    for name in NAMES:
        # That of the statistics is named in the text of its document.
        assert (f"](pictures/some-device-{name}.png)" in text) == (name != "critical-difference")
    assert "`benchmarks/results/some-device/memory.json`" in text
    assert "| 2 threads | fp32 | forward |" in text


def test_a_figure_of_the_scaling_table_changed_by_hand_is_found(folders: tuple[Path, Path], tmp_path: Path) -> None:
    found, _ = folders
    document = tmp_path / "speed.md"
    document.write_text(MARKS)
    assert report.main([str(document), "--results", str(found)]) == 0
    text = document.read_text()
    line = next(line for line in text.splitlines() if line.startswith("| 2 threads | fp32 | forward |"))
    cells = line.split(" | ")
    document.write_text(text.replace(line, " | ".join([*cells[:3], "0.123", *cells[4:]])))
    assert report.main([str(document), "--results", str(found), "--check"]) == 1


def test_pictures_are_left_alone_where_other_results_are_reported(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, _ = folders
    monkeypatch.setattr(gallery, "FOLDER", tmp_path / "untouched")
    document = tmp_path / "speed.md"
    document.write_text(MARKS)
    assert report.main([str(document), "--results", str(found)]) == 0
    assert report.main([str(document), "--results", str(found), "--check"]) == 0
    assert not (tmp_path / "untouched").exists()


def test_a_gpu_is_drawn_with_its_own_styles(tmp_path: Path, documents: dict[str, Any]) -> None:
    over = {**documents["scaling.json"], "device": {"name": "Some GPU", "type": "cuda"}}
    over["rows"] = [{**row, "threads": None} for row in over["rows"]]
    results.save(over, tmp_path / "some-gpu" / "scaling.json")
    assert len(gallery.update(tmp_path, tmp_path / "pictures")) == 2
    assert "| CUDA graphs | fp32 | forward |" in report.scaling(tmp_path)


def test_source_names_the_device_folder(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.json"
    path.parent.mkdir()
    path.write_text("text")
    assert str(Source.of(path)) == f"a/b.json sha256:{hashlib.sha256(b'text').hexdigest()}"
