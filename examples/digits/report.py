"""The demo's printed tables, and what they mean in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from examples.digits.experiment import EPS, Results
from examples.digits.timing import milliseconds


def print_results(console: Console, results: Results, test_size: int) -> None:
    """Accuracies, zero-gradient share, mean cap and training time of both networks, then ``explain``."""
    table = Table(title=f"{test_size} test digits, attacks at eps {EPS}", box=box.SIMPLE_HEAD)
    table.add_column("head")
    for name in ("clean", "FGSM", "PGD", "zero gradient", "mean cap", "seconds"):
        table.add_column(name, justify="right")
    for network in (results.drelu, results.relu):
        found, cap = network.evaluation, network.records[-1].cap_mean
        shares = (*(found.accuracy[attack] for attack in ("clean", "fgsm", "pgd")), found.zero_gradient)
        mean_cap = "-" if cap is None else f"{cap:.3g}"
        table.add_row(network.name, *(f"{share:.1%}" for share in shares), mean_cap, f"{network.seconds:.1f}")
    console.print(table)
    console.print(explain(results), highlight=False)


def explain(results: Results) -> str:
    """What the zero-gradient column means, with this run's numbers."""
    found = results.drelu.evaluation
    return (
        f"Zero gradient: for {found.zero_gradient:.1%} of the test digits the gradient of the D-ReLU network's loss is "
        "exactly zero in every pixel. FGSM and PGD follow that gradient, so they cannot move such a digit, and the "
        "network is scored on it almost as if nobody had attacked. This is gradient masking: the FGSM and PGD columns "
        "of the D-ReLU row are NOT robustness.\n"
        "Check with another attack: the PGD digits made on the ReLU baseline, shown to the D-ReLU network, leave it "
        f"{results.transferred:.1%} accuracy (its own PGD: {found.accuracy['pgd']:.1%}). Attacks made for "
        "capped networks, whose backward pass goes through the cap, are stronger still; this demo does not run them."
    )


def print_timing(console: Console, rows: Sequence[Any], threads: int) -> None:
    """Milliseconds of every implementation and pass, beside the floor."""
    table = Table(title=f"Time on this machine, {threads} threads (floor: a clone of x)", box=box.SIMPLE_HEAD)
    for name in ("dtype", "pass", "implementation"):
        table.add_column(name)
    for name in ("ms", "floor ms", "x floor"):
        table.add_column(name, justify="right")
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        times = (milliseconds(row["ms"]), milliseconds(row["floor_ms"]), f"{row['ratio_to_floor']:.2f}")
        end_of_pass = following is None or following["pass"] != row["pass"]
        table.add_row(row["dtype"], row["pass"], row["implementation"], *times, end_section=end_of_pass)
    console.print(table)
