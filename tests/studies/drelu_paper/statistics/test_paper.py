"""The paper's tables as data: the shapes, figures read off the paper by hand, and what is missing or asked wrongly."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from studies.drelu_paper.paper import tables

ATTACKS = ["clean", "fgsm", "pgd", "apgd_ce", "apgd_dlr", "cw_l2"]
MODELS = ["dense", "shallow_cnn", "resnet50", "resnet101", "mobilenet_v2", "inception_v3"]


def test_table_2_has_the_papers_order() -> None:
    table = tables.load(2)
    assert table.subject == "Table 2, cifar10"
    assert list(table.accuracies.index) == [(model, attack) for model in MODELS for attack in ATTACKS]
    assert list(table.accuracies.columns) == ["AT", "TRADES-1", "TRADES-6", "D-ReLU"]
    assert table.ranks.shape == (36, 4)
    assert table.ranks.index.equals(table.accuracies.index)


# Of the paper's page: the first and last cell of a table, and some between.
@pytest.mark.parametrize(
    ("number", "dataset", "block", "method", "accuracy", "rank"),
    [
        (1, None, ("dense", "clean"), "AT", 98.10, 1),
        (1, None, ("shallow_cnn", "cw_l2"), "D-ReLU", 16.60, 1),
        (2, None, ("dense", "clean"), "AT", 52.33, 1),
        (2, None, ("dense", "cw_l2"), "D-ReLU", 36.10, 4),
        (2, None, ("mobilenet_v2", "fgsm"), "AT", 46.50, 2),
        (2, None, ("inception_v3", "cw_l2"), "D-ReLU", 86.83, 1),
        (3, None, ("dense", "fgsm"), "TRADES-1", 13.37, 4),
        (4, None, ("resnet101", "fgsm"), "TRADES-6", 22.30, 1),
        (5, "cifar100", ("resnet101", "square"), "TRADES-6", 1.67, 3),
        (6, None, ("dense", "cw_l2"), "TRADES", 52.8, 1),
        (7, None, ("resnet101", "apgd_ce"), "D-ReLU", 43.47, 1),
        (8, None, ("mobilenet_v2", "fgsm"), "TRADES", 8, 2),
        (9, "tinyimagenet", ("inception_v3", "square"), "TRADES", 6.63, 2),
    ],
)
def test_cells(
    number: int, dataset: str | None, block: tuple[str, str], method: str, accuracy: float, rank: int
) -> None:
    table = tables.load(number, dataset)
    assert table.accuracies.loc[block, method] == accuracy
    assert table.ranks.loc[block, method] == rank


def test_every_table_has_its_cells() -> None:
    shapes = {
        (number, dataset): tables.load(number, dataset).accuracies.shape
        for number in tables.NUMBERS
        for dataset in tables.datasets(number)
    }
    three = ("cifar10", "cifar100", "tinyimagenet")
    assert shapes == {
        (1, "mnist"): (12, 4),
        **{(number, dataset): (36, 4) for number, dataset in zip((2, 3, 4), three, strict=True)},
        **{(5, dataset): (12, 3) for dataset in three},
        **{(number, dataset): (36, 2) for number, dataset in zip((6, 7, 8), three, strict=True)},
        **{(9, dataset): (12, 2) for dataset in three},
    }
    assert sum(rows * columns for rows, columns in shapes.values()) == len(tables.cells())


def test_one_cell_is_missing() -> None:
    found = tables.cells()
    empty = found[found["accuracy_percent"].isna()]
    assert empty[["table", "model", "training", "attack"]].to_numpy().tolist() == [[3, "dense", "trades-1", "apgd_dlr"]]
    assert found["rank"].notna().all()


def test_clean_accuracies_that_differ_between_tables() -> None:
    """Those that paper/README.md lists; D-ReLU's are of several balancers."""
    found = tables.cells()
    found = found[(found["attack"] == "clean") & (found["training"] != "drelu")]
    keys = ["dataset", "model", "training"]
    values = found.groupby([*keys, found["augmented"].fillna("none")])["accuracy_percent"]
    assert sorted(key[:3] for key, group in values if group.nunique() > 1) == [
        ("cifar10", "dense", "trades-1"),
        ("cifar10", "mobilenet_v2", "trades-6"),
        ("cifar10", "resnet50", "trades-1"),
        ("cifar10", "shallow_cnn", "trades-6"),
        ("cifar100", "resnet101", "trades-6"),
        ("tinyimagenet", "resnet50", "trades"),
        ("tinyimagenet", "resnet50", "trades-1"),
    ]


def test_attacks_that_raise_the_accuracy() -> None:
    """Those that paper/README.md lists."""
    found = tables.cells()
    keys = ["table", "dataset", "model", "training"]
    clean = found[found["attack"] == "clean"].set_index(keys)["accuracy_percent"]
    attacked = found[found["attack"] != "clean"].set_index(keys)
    raised = attacked[attacked["accuracy_percent"] > clean.reindex(attacked.index)]
    assert [(table, model, training) for table, _, model, training in raised.index] == [
        (2, "resnet101", "drelu"),
        (2, "mobilenet_v2", "drelu"),
        (3, "resnet50", "drelu"),
        (7, "resnet101", "drelu"),
        (8, "dense", "drelu"),
    ]
    assert set(raised["attack"]) == {"pgd"}


def test_asked_wrongly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="number: got 10; expected a table of the paper, 1 to 9"):
        tables.load(10)
    with pytest.raises(ValueError, match="dataset: got none; expected one of cifar10, cifar100, tinyimagenet"):
        tables.load(5)
    with pytest.raises(ValueError, match="dataset: got 'mnist'; expected cifar10, which table 2 has"):
        tables.load(2, "mnist")
    doubled = pd.read_csv(tables.FILE)
    pd.concat([doubled, doubled.tail(1)]).to_csv(tmp_path / "tables.csv", index=False)
    monkeypatch.setattr(tables, "FILE", tmp_path / "tables.csv")
    with pytest.raises(ValueError, match="got 9, tinyimagenet, inception_v3, trades, square twice"):
        tables.load(2)
