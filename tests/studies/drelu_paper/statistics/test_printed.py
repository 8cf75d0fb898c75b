"""The paper's statistics on its Table 2: which figures its accuracies give, and which its printed ranks."""

from __future__ import annotations

import pytest

from studies.drelu_paper.paper.printed import Claim, claims, no_rankings, wrong_ranks
from studies.drelu_paper.paper.tables import NUMBERS, datasets, load
from studies.drelu_paper.statistics.comparison import (
    compare,
    compare_ranks,
)

ACCURACIES, RANKS = load(2).accuracies, load(2).ranks


def test_what_differs_from_drelu_depends_on_the_ranks_and_on_alpha() -> None:
    def parted(accuracies: bool, alpha: float) -> set[str]:
        found = compare(ACCURACIES, alpha) if accuracies else compare_ranks(RANKS, alpha)
        assert found.nemenyi is not None
        return {pair.worse for pair in found.nemenyi.pairs if pair.differ and pair.better == "D-ReLU"}

    assert parted(True, 0.05) == {"AT", "TRADES-1", "TRADES-6"}
    assert parted(True, 0.01) == {"TRADES-1", "TRADES-6"}
    assert parted(False, 0.05) == {"TRADES-1", "TRADES-6"}


def test_ranks_that_disagree_with_their_accuracies() -> None:
    found = wrong_ranks(load(2))
    swapped = {
        ("shallow_cnn", "fgsm"): "AT TRADES-6", ("shallow_cnn", "pgd"): "AT TRADES-6",
        ("shallow_cnn", "apgd_ce"): "AT TRADES-6", ("shallow_cnn", "apgd_dlr"): "AT TRADES-6",
        ("shallow_cnn", "cw_l2"): "AT TRADES-6", ("resnet50", "clean"): "TRADES-1 TRADES-6",
        ("resnet50", "pgd"): "AT TRADES-6", ("resnet50", "apgd_ce"): "AT TRADES-6",
        ("resnet101", "clean"): "TRADES-1 D-ReLU", ("mobilenet_v2", "clean"): "TRADES-1 TRADES-6",
        ("mobilenet_v2", "fgsm"): "AT TRADES-1", ("mobilenet_v2", "pgd"): "AT TRADES-1",
        ("mobilenet_v2", "apgd_ce"): "AT TRADES-1", ("mobilenet_v2", "apgd_dlr"): "AT TRADES-1",
        ("inception_v3", "cw_l2"): "TRADES-1 TRADES-6",
    }  # fmt: skip
    assert [(one.block, one.method) for one in found] == [
        (" / ".join(block), method) for block, methods in swapped.items() for method in methods.split()
    ]
    assert (found[0].accuracy, found[0].printed_rank, found[0].rank) == (42.83, 2, 3)
    assert no_rankings(load(2)) == ["mobilenet_v2 / fgsm"]


def test_the_other_tables_have_one_such_block_and_ties_in_any_order_are_none() -> None:
    others = [load(number, dataset) for number in NUMBERS for dataset in datasets(number) if number != 2]
    found = {(table.number, one.block) for table in others for one in wrong_ranks(table)}
    assert found == {(3, "mobilenet_v2 / apgd_dlr")}
    assert not any(no_rankings(table) for table in others)
    # Table 4, dense, CW: 7.30 twice, printed as 2 and 3.
    table = load(4)
    assert table.accuracies.loc[("dense", "cw_l2"), ["TRADES-6", "D-ReLU"]].tolist() == [7.3, 7.3]
    table.ranks.loc[("dense", "cw_l2"), ["TRADES-6", "D-ReLU"]] = [3, 2]
    assert wrong_ranks(table) == []
    table.ranks.loc[("dense", "cw_l2"), ["TRADES-6", "D-ReLU"]] = [3, 4]
    assert [one.method for one in wrong_ranks(table)] == ["D-ReLU"]


def test_claims() -> None:
    found = claims(compare(ACCURACIES), compare_ranks(RANKS))
    assert [(one.printed, round(one.from_accuracies, 3), one.holds) for one in found] == [
        ("17.4", 17.397, True),
        ("3.92", 3.925, True),
        ("39.43", 39.433, True),
        ("20.12", 20.129, True),
        ("2.13", 3.974, False),
        ("2.18", 3.974, False),
        ("0.656", 0.782, False),
        ("0.86", 0.861, True),
        ("1.89", 1.889, True),
        ("1.14", 1.139, True),
    ]
    assert [one.from_printed_ranks is None for one in found] == [True, True, False, False, *[True] * 3, *[False] * 3]
    # The printed critical values are those of another alpha, and of rows of a printed table of F.
    assert [one.comment for one in found if one.figure.startswith("critical F")] == [
        "F(3, 120) at alpha 0.10 is 2.13",
        "F(3, 60) at alpha 0.10 is 2.18",
    ]


@pytest.mark.parametrize(
    ("printed", "value", "holds"), [("0.86", 0.8695, True), ("0.86", 0.871, False), ("2", 3, False)]
)
def test_a_claim_holds_to_its_last_digit(printed: str, value: float, holds: bool) -> None:
    assert Claim("", printed, value).holds is holds
