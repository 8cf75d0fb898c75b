"""The command line, its files, the committed result file and the report of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from benchmarks.harness.machine import RESULTS
from studies.drelu_paper import command
from studies.drelu_paper.paper.tables import NUMBERS
from studies.drelu_paper.statistics import document, tables
from studies.drelu_paper.statistics.comparison import ANOVA, FRIEDMAN, IMAN_DAVENPORT
from studies.drelu_paper.statistics.document import ACCURACIES, FILE_NAME, MODELS, PRINTED_RANKS, REPAIRED_RANKS
from tools import report

pytest.importorskip("matplotlib")
from matplotlib import image, pyplot
from matplotlib.axes import Axes

from studies.drelu_paper.statistics import picture

COMMITTED = RESULTS / "paper" / FILE_NAME
FRAME = pd.DataFrame(
    [(block, method, base + step) for block, base in enumerate((50, 60, 20)) for step, method in enumerate("abc")],
    columns=["block", "method", "accuracy"],
)


def run(*arguments: object) -> int:
    return command.main(["stats", *map(str, arguments)])


def test_a_table_of_the_paper(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--paper-table", 2, "--output", tmp_path) == 0
    printed = capsys.readouterr().out
    for figure in ("17.40", "39.43", "20.13", "32.30", "14.93", "0.656", "0.782", "AT 42.83 (2), TRADES-6 46.13 (3)"):
        assert figure in printed
    written = json.loads((tmp_path / FILE_NAME).read_text())
    assert {one["subject"] for one in written["comparisons"]} == {"Table 2, cifar10"}
    assert written["comparisons"][0]["tests"][1]["statistic"] == pytest.approx(39.43, abs=0.005)
    drawn = image.imread(tmp_path / "critical-difference-table-2-cifar10.png")
    assert drawn[..., :3].std() > 0.01
    assert pyplot.get_fignums() == [], "figures are closed"


def test_results_come_from_a_csv_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    FRAME.to_csv(tmp_path / "ours.csv", index=False)
    assert run(tmp_path / "ours.csv", "--output", tmp_path / "out") == 0
    # All blocks agree: F is infinite, which JSON cannot say.
    assert "infinite" in capsys.readouterr().out
    text = (tmp_path / "out" / FILE_NAME).read_text()
    assert "Infinity" not in text
    (comparison,) = json.loads(text)["comparisons"]
    assert {test["name"]: test["statistic"] for test in comparison["tests"]}[IMAN_DAVENPORT] is None
    assert (tmp_path / "out" / "critical-difference-ours.png").exists()


def test_two_methods_have_no_diagram(tmp_path: Path) -> None:
    assert run("--paper-table", 6, "--output", tmp_path) == 0
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


def test_a_missing_cell_stops_or_its_block_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--paper-table", 3, "--output", tmp_path / "out") == command.USAGE
    shown = capsys.readouterr()
    assert "accuracies: got no value in dense / apgd_dlr, TRADES-1" in shown.err
    assert shown.out == ""
    assert not (tmp_path / "out").exists()
    assert run("--paper-table", 3, "--missing", "drop") == 0
    assert "35, 1 left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "expected either a study or a CSV file, or --paper-table"),
        (("some.csv", "--paper-table", "2"), "expected either a study or a CSV file, or --paper-table"),
        (("absent.csv",), "No such file"),
        (("--paper-table", "2", "--alpha", "2"), "alpha: got 2.0; expected a number between 0 and 1"),
    ],
)
def test_bad_arguments(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == command.USAGE
    assert message in capsys.readouterr().err


def test_bad_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = {b"": "no valid CSV", b"\xff\xfe\x00": "no valid CSV", b"a,b\n1,2\n": "expected block"}
    for content, message in bad.items():
        (tmp_path / "bad.csv").write_bytes(content)
        assert run(tmp_path / "bad.csv") == command.USAGE
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run("--paper-table", 10)


def test_the_committed_file_is_what_the_code_gives() -> None:
    """But for the versions of its packages; figures to what another version may change in the last digits."""
    committed, found = json.loads(COMMITTED.read_text()), document.of_paper(NUMBERS, 0.05, "drop")
    found = json.loads(json.dumps(found))
    del committed["versions"], found["versions"]
    ours, theirs = (dict(_leaves(one)) for one in (found, committed))
    assert ours.keys() == theirs.keys()
    for path, value in theirs.items():
        # p-values far below any alpha are sums of a numerical integral.
        assert ours[path] == (pytest.approx(value, rel=1e-6, abs=1e-9) if isinstance(value, float) else value), path


def _leaves(tree: Any, path: str = "") -> Any:
    if isinstance(tree, dict | list):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from _leaves(value, f"{path}/{key}")
    else:
        yield path, tree


def test_what_the_page_says_of_the_tables() -> None:
    """In words: which tables ANOVA misses, where D-ReLU is not the best, what a block per network leaves."""
    found = {(one["subject"], one["basis"]): one for one in json.loads(COMMITTED.read_text())["comparisons"]}
    for subject in ("Table 1, mnist", "Table 4, tinyimagenet"):
        p_values = {test["name"]: test["p_value"] for test in found[subject, ACCURACIES]["tests"]}
        assert p_values[ANOVA] > 0.05 > p_values[FRIEDMAN] > p_values[IMAN_DAVENPORT]
    others = {
        subject: one for (subject, basis), one in found.items()
        if basis == ACCURACIES and one["methods"][0]["name"] != "D-ReLU"
    }  # fmt: skip
    assert list(others) == ["Table 5, tinyimagenet", "Table 9, cifar10", "Table 9, cifar100"]
    shown = tables.overview(list(others.values()))
    assert all("D-ReLU" in row[shown.header.index("differ from it")] for row in shown.rows)
    networks = found["Table 2, cifar10", MODELS]
    assert networks["blocks"] == 6
    assert [pair["worse"] for pair in networks["nemenyi"]["pairs"] if pair["differ"]] == ["TRADES-1"]
    printed, repaired = (
        {test["name"]: test["statistic"] for test in found["Table 2, cifar10", basis]["tests"]}[FRIEDMAN]
        for basis in (PRINTED_RANKS, REPAIRED_RANKS)
    )
    assert (round(printed, 2), round(repaired, 2)) == (32.30, 39.37)


def test_the_report_shows_the_committed_file(tmp_path: Path) -> None:
    begin, end = "<!-- report:statistics:begin -->", "<!-- report:statistics:end -->"
    path = tmp_path / "page.md"
    path.write_text(f"{begin}\n{end}\n")
    assert report.main([str(path), "--results", str(RESULTS)]) == 0
    text = path.read_text()
    assert "| critical difference (no alpha is stated; here 0.05) | 0.656 | 0.782 | - | **no** |" in text
    assert "| Table 2, cifar10 | mobilenet_v2 / fgsm | AT 46.50 (2), TRADES-1 46.23 (3) | 3, 4 | two methods" in text
    assert report.main([str(path), "--results", str(RESULTS), "--check"]) == 0
    path.write_text(text.replace("0.656 | 0.782", "0.656 | 0.656"))
    assert report.main([str(path), "--results", str(RESULTS), "--check"]) == 1
    assert report.main([str(path), "--results", str(tmp_path)]) == 0
    assert tables.NOTHING in path.read_text()


def test_results_have_a_picture_but_no_report_of_claims(tmp_path: Path) -> None:
    ours = document.of_results(pd.DataFrame(np.eye(3)), "ours", 0.05, "error")
    with pytest.raises(ValueError, match="document: got no claims"):
        tables.report(ours)
    picture.draw(ours, tmp_path / "ours.png")
    assert (tmp_path / "ours.png").stat().st_size > 10_000


def test_a_picture_shows_the_critical_difference_and_joins_what_does_not_differ() -> None:
    made = document.of_paper([2], 0.05, "error")
    figure = picture.figure_of(made["comparisons"])
    accuracies, ranks, repaired, models = figure.axes
    assert [axes.get_title(loc="left").split(":")[0] for axes in figure.axes] == [
        f"Table 2, cifar10; {one['basis']}" for one in made["comparisons"]
    ]
    # Black lines: the critical difference, and a bar per group; D-ReLU 1.53, AT 2.39, TRADES-6 2.67, TRADES-1 3.42.
    assert _bars(accuracies) == [(1.53, 2.31), (2.39, 2.67), (2.67, 3.42)]
    assert _bars(ranks) == [(1.56, 2.25), (1.56, 2.34), (2.25, 2.78), (2.78, 3.36)]
    assert len(_bars(repaired)) == 4
    assert _bars(models) == [(1.5, 2.33), (1.5, 3.41), (2.33, 3.83)]
    assert {"D-ReLU (1.53)", "(3.42) TRADES-1", "CD = 0.78"} <= {text.get_text() for text in accuracies.texts}
    pyplot.close(figure)
    with pytest.raises(ValueError, match="comparisons: got none with a Nemenyi test"):
        picture.figure_of(document.of_paper([6], 0.05, "error")["comparisons"])


def _bars(axes: Axes) -> list[tuple[float, float]]:
    lines = [line.get_xdata() for line in axes.lines if line.get_color() == "k"]
    return sorted((round(float(min(x)), 2), round(float(max(x)), 2)) for x in lines)
