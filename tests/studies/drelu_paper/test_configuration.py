"""What a configuration file asks for, and the paper's tables and figures among them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from studies.drelu_paper import configuration
from studies.drelu_paper.paper import tables as paper
from studies.drelu_paper.recipe import AttackSettings, DataRecipe, Evaluated, Recipe
from studies.drelu_paper.training import TrainingConfig
from tests.studies.drelu_paper.smallest import SMALLEST


def read(tmp_path: Path, text: str) -> configuration.Study:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    return configuration.read(path)


def test_every_combination_is_a_run(tmp_path: Path):
    methods = "[natural, at, {method: trades, beta: [1, 6]}, {method: drelu, balancer: [0.5, 2]}]"
    study = read(tmp_path, SMALLEST.replace("[natural]", methods))
    labels = ["ReLU", "AT", "TRADES-1", "TRADES-6", "D-ReLU 0.5", "D-ReLU 2"]
    assert [run.recipe.label for run in study.runs[:6]] == labels
    assert [run.recipe.seed for run in study.runs] == [0] * 6 + [1] * 6
    assert len({run.name for run in study.runs}) == 12
    natural, at, trades, _, drelu, _ = (run.recipe for run in study.runs[:6])
    assert at.start == natural
    assert (at.training.method, at.training.eps, at.training.stop_patience) == ("at", 0.1, None)
    assert (trades.training.method, trades.training.beta, trades.start) == ("trades", 1.0, None)
    assert (drelu.training.balancer, drelu.calibrate, drelu.training.cap_lr) == (0.5, 2, 1e-2)
    assert [run.baseline for run in study.runs[:3]] == [None, natural, natural]
    assert all(run.recipe.training.seed == run.recipe.seed for run in study.runs)


def test_paper_mode_is_the_paper_s(tmp_path: Path):
    study = read(tmp_path, SMALLEST.replace("[natural]", "[{method: drelu, balancer: 1}]") + "mode: paper\n")
    recipe = study.runs[0].recipe
    t = recipe.training
    assert (recipe.init, recipe.calibrate, t.cap_lr, t.lr) == (100.0, None, 1e-3, 1e-3)
    assert (t.plateau_factor, t.plateau_patience, t.stop_patience, t.epochs) == (0.5, 5, 10, 2000)


def test_the_baseline_is_one_for_all_modes_and_methods(tmp_path: Path):
    drelu = "[{method: drelu, balancer: 1, training: {epochs: 7}}]"
    fast = read(tmp_path, SMALLEST.replace("[natural]", drelu))
    slow = read(tmp_path, SMALLEST.replace("[natural]", drelu) + "mode: paper\n")
    assert fast.runs[0].baseline == slow.runs[0].baseline == read(tmp_path, SMALLEST).runs[0].recipe


def test_settings_by_model(tmp_path: Path):
    text = SMALLEST.replace("[dense]", "[dense, shallow_cnn]") + (
        "training: {epochs: 3}\nby_model: {shallow_cnn: {attacks: {samples: 7}, training: {epochs: 5}}}\n"
    )
    dense, _, shallow, _ = read(tmp_path, text).runs
    assert (dense.attacks.samples, shallow.attacks.samples) == (500, 7)
    assert (dense.recipe.training.epochs, shallow.recipe.training.epochs) == (3, 5)


def test_extends_and_studies(tmp_path: Path):
    (tmp_path / "base.yaml").write_text(SMALLEST)
    extended = read(tmp_path, "extends: base\ntitle: Other\nseeds: [0]\ncolumns: [clean]\n")
    assert (extended.title, len(extended.runs), extended.columns) == ("Other", 1, ("clean",))
    together = configuration.read("table5")
    assert set(together.runs) == {
        run for name in ("table2", "table3", "table4") for run in configuration.read(name).runs
    }


@pytest.mark.parametrize(
    ("methods", "label"),
    [
        ("[{method: drelu, balancer: 1, init: [1, 10]}]", "D-ReLU 1"),
        ("[natural, {method: natural, training: {lr: 0.01}}]", "ReLU"),
        ("[{method: drelu, balancer: [1, 1.0000001]}]", "D-ReLU 1"),
        ("[{method: trades, beta: [6, 6.0000001]}]", "TRADES-6"),
        ("[at, {method: at, training: {epochs: 5}}]", "AT"),
        ("[natural, {method: natural, data: {train_limit: 32}}]", "ReLU"),
    ],
)
def test_runs_that_tables_cannot_tell_apart_are_refused(methods: str, label: str, tmp_path: Path):
    message = f"methods: got two different runs of digits, dense, head, {label}, seed 0, which tables cannot tell apart"
    with pytest.raises(ValueError, match=message):
        read(tmp_path, SMALLEST.replace("[natural]", methods))


def test_studies_whose_runs_tables_cannot_tell_apart_are_refused(tmp_path: Path):
    others = {"first": SMALLEST, "same": SMALLEST, "second": SMALLEST.replace("0.1", "0.2")}
    paths = {name: tmp_path / f"{name}.yaml" for name in others}
    for name, text in others.items():
        paths[name].write_text(text)
    together = "title: T\nstudies: [{}, {}]\n"
    assert len(read(tmp_path, together.format(paths["first"], paths["same"])).runs) == 2
    with pytest.raises(ValueError, match="studies: got two different runs of digits, dense, head, ReLU, seed 0"):
        read(tmp_path, together.format(paths["first"], paths["second"]))


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(FileNotFoundError, match=r"known names: digits, .*table9"):
        configuration.read("table10")


def test_there_is_a_configuration_for_every_table_and_figure_with_numbers():
    names = {path.stem for path in configuration.FOLDER.glob("*.yaml")}
    assert {f"table{number}" for number in range(1, 10)} | {f"figure{number}" for number in range(11, 28)} <= names


@pytest.mark.parametrize("path", sorted(configuration.FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_reads(path: Path):
    study = configuration.read(path)
    assert study.runs
    assert study.title


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_tables_have_the_paper_s_rows(number: int):
    study = configuration.read(f"table{number}")
    rows = {(run.recipe.model, run.recipe.label) for run in study.runs}
    cells = paper.cells()
    printed = cells[cells["table"] == number].drop_duplicates(["model", "training"])
    assert len(printed) > 5
    for _, row in printed.iterrows():
        capped = row.training == "drelu"
        label = f"D-ReLU {float(row.balancer):g}" if capped else paper.METHODS[row.training]
        assert (row.model, label) in {(model, found.removesuffix(" from 100")) for model, found in rows}
    assert {run.recipe.data.name for run in study.runs} == set(printed.dataset)
    assert {run.recipe.seed for run in study.runs} == {0, 1, 2}


def test_a_new_option_leaves_the_names():
    recipe = Recipe(DataRecipe(), "dense", "drelu", 0, TrainingConfig(balancer=2.0))
    run = Evaluated(recipe, None, AttackSettings())
    assert run.name_at(1) == "digits-dense-d-relu-2-from-100-s0-ef405252d8-cca731"
    assert run.name_at(2) == "digits-dense-d-relu-2-from-100-s0-ef405252d8-ab53be"
    for other in (
        replace(recipe, seed=1),
        replace(recipe, data=DataRecipe(train_limit=3)),
        replace(recipe, training=TrainingConfig(balancer=2.0, lr=1.0)),
        replace(recipe, start=recipe),
    ):
        assert other.identity != recipe.identity
    assert Evaluated(recipe, recipe, AttackSettings()).name != run.name
    assert Evaluated(recipe, None, AttackSettings(eps=0.2)).name != run.name
