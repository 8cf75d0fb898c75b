"""The paper's tables 1 to 9, as it prints them: accuracies, and the ranks in parentheses beside them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

FILE = Path(__file__).with_name("tables.csv")
NUMBERS = range(1, 10)
METHODS = {"at": "AT", "trades-1": "TRADES-1", "trades-6": "TRADES-6", "trades": "TRADES", "drelu": "D-ReLU"}
KEYS = ["table", "dataset", "model", "training", "attack"]


@dataclass(frozen=True)
class PaperTable:
    """One data set of one table.

    Attributes:
        number: of the table.
        dataset: such as ``"cifar10"``.
        accuracies: in per cent; NaN where the paper's text, as we have it, lacks the figure. One row per block, indexed
            by ``(model, attack)`` (``"clean"`` counts as an attack, as in the paper), one column per method, all in the
            paper's order.
        ranks: the same shape; 1 is the highest accuracy. As printed, right or wrong.
    """

    number: int
    dataset: str
    accuracies: pd.DataFrame
    ranks: pd.DataFrame

    @property
    def subject(self) -> str:
        return f"Table {self.number}, {self.dataset}"


def cells() -> pd.DataFrame:
    """Every printed cell: table, dataset, model, training, balancer and augmented (text), attack, accuracy, rank."""
    found = pd.read_csv(FILE, dtype={"balancer": "str", "augmented": "str"})
    doubled = found[found.duplicated(KEYS)]
    if len(doubled):
        raise ValueError(f"{FILE}: got {', '.join(map(str, doubled.iloc[0][KEYS]))} twice; expected every cell once")
    return found


def datasets(number: int) -> list[str]:
    """The data sets of a table, in its order."""
    if number not in NUMBERS:
        raise ValueError(f"number: got {number}; expected a table of the paper, {NUMBERS[0]} to {NUMBERS[-1]}")
    found = cells()
    return list(found.loc[found["table"] == number, "dataset"].unique())


def load(number: int, dataset: str | None = None) -> PaperTable:
    """One table, 1 to 9; ``dataset`` is needed for tables 5 and 9, which have three.

    Raises:
        ValueError: there is no such table, or not of this data set, or the table has several and none is named.
    """
    names = datasets(number)
    if dataset is None and len(names) > 1:
        raise ValueError(f"dataset: got none; expected one of {', '.join(names)}, which table {number} has")
    if dataset not in (None, *names):
        raise ValueError(f"dataset: got {dataset!r}; expected {' or '.join(names)}, which table {number} has")
    dataset = dataset or names[0]
    found = cells()
    found = found[(found["table"] == number) & (found["dataset"] == dataset)]
    found = found.assign(training=found["training"].map(METHODS))
    # pivot sorts; the paper's own order is that of the file.
    blocks = pd.MultiIndex.from_frame(found[["model", "attack"]].drop_duplicates())
    methods = [name for name in METHODS.values() if name in set(found["training"])]
    wide = found.pivot(index=["model", "attack"], columns="training", values=["accuracy_percent", "rank"])
    accuracies, ranks = (wide[value].loc[blocks, methods].astype(float) for value in ("accuracy_percent", "rank"))
    return PaperTable(number, dataset, accuracies, ranks)
