"""The tests by small examples worked out by hand, by Demsar's published one, and by each other."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest

from studies.drelu_paper.statistics.comparison import (
    ANOVA,
    FRIEDMAN,
    IMAN_DAVENPORT,
    WILCOXON,
    compare,
    compare_ranks,
    critical_difference,
    iman_davenport,
    level_of_difference,
    rank,
)


def frame(rows: list[list[float]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list("abcdef"[: len(rows[0])]))


# Demsar (2006), Table 6: AUC of C4.5, C4.5+m, C4.5+cf, C4.5+m+cf on 14 data sets. He prints 0.975 twice in the last row
# but one, and ranks 2 and 3.
DEMSAR = frame(
    [
        [0.763, 0.768, 0.771, 0.798], [0.599, 0.591, 0.590, 0.569], [0.954, 0.971, 0.968, 0.967],
        [0.628, 0.661, 0.654, 0.657], [0.882, 0.888, 0.886, 0.898], [0.936, 0.931, 0.916, 0.931],
        [0.661, 0.668, 0.609, 0.685], [0.583, 0.583, 0.563, 0.625], [0.775, 0.838, 0.866, 0.875],
        [1.000, 1.000, 1.000, 1.000], [0.940, 0.962, 0.965, 0.962], [0.619, 0.666, 0.614, 0.669],
        [0.972, 0.981, 0.97501, 0.975], [0.957, 0.978, 0.946, 0.970],
    ]
)  # fmt: skip


def test_demsars_example() -> None:
    """His text: chi2 9.28 and F_F 3.69, ties not corrected; critical differences 1.25 at 0.05, which parts no pair, and
    1.12 at 0.10, which parts C4.5 from C4.5+m and C4.5+m+cf.
    """
    ranks = rank(DEMSAR)
    assert [round(mean, 3) for mean in ranks.mean()] == [3.143, 2.0, 2.893, 1.964]
    found = compare_ranks(ranks)
    assert found.test(FRIEDMAN).statistic == pytest.approx(9.28, abs=0.01)
    assert found.test(IMAN_DAVENPORT).statistic == pytest.approx(3.69, abs=0.01)
    assert found.test(IMAN_DAVENPORT).degrees == (3, 39)
    assert found.test(IMAN_DAVENPORT).critical == pytest.approx(2.85, abs=0.005)
    assert found.nemenyi is not None
    assert found.nemenyi.critical_difference == pytest.approx(1.25, abs=0.005)
    assert not any(pair.differ for pair in found.nemenyi.pairs)
    found = compare_ranks(ranks, 0.1)
    assert found.nemenyi is not None
    assert found.nemenyi.critical_difference == pytest.approx(1.12, abs=0.005)
    assert [(pair.better, pair.worse) for pair in found.nemenyi.pairs if pair.differ] == [("d", "a"), ("b", "a")]


def test_ties_are_corrected_where_accuracies_are_given() -> None:
    """By hand: t^3 - t for t tied methods is 6 in three of the 14 blocks and 60 in one, of 60 possible in each."""
    corrected, plain = compare(DEMSAR).test(FRIEDMAN), compare_ranks(rank(DEMSAR)).test(FRIEDMAN)
    assert corrected.statistic == pytest.approx(plain.statistic / (1 - (3 * 6 + 60) / (14 * 60)))


def test_tied_methods_share_the_mean_of_their_ranks() -> None:
    assert rank(frame([[3, 3, 1], [2, 2, 2], [1, 5, 3]])).to_numpy().tolist() == [[1.5, 1.5, 3], [2, 2, 2], [3, 1, 2]]


def test_anova_by_hand() -> None:
    # Means 2, 3, 7; between: 3 (4 + 1 + 9) / 2 = 21; within: (2 + 2 + 2) / 6 = 1.
    found = compare(frame([[1, 2, 6], [2, 3, 7], [3, 4, 8]])).test(ANOVA)
    assert found.statistic == pytest.approx(21)
    assert found.degrees == (2, 6)
    assert found.critical == pytest.approx(5.143, abs=5e-4)
    assert found.p_value < 0.05


def test_friedman_by_hand_and_the_order_of_the_methods() -> None:
    # Ranks of c, b, a: 1 2 3 twice, 1 3 2, 2 1 3. Means 1.25, 2, 2.75; chi2 = 12 * 4 / 12 (13.125 - 12) = 4.5.
    found = compare(frame([[1, 2, 3], [10, 20, 30], [2, 1, 3], [1, 3, 2]]))
    assert [(method.name, method.mean_rank) for method in found.methods] == [("c", 1.25), ("b", 2.0), ("a", 2.75)]
    assert found.methods[0].mean_accuracy == 9.5
    assert found.test(FRIEDMAN).statistic == pytest.approx(4.5)
    assert found.test(FRIEDMAN).degrees == (2,)
    assert found.test(FRIEDMAN).critical == pytest.approx(5.991, abs=5e-4)
    # 3 * 4.5 / (4 * 2 - 4.5)
    assert found.test(IMAN_DAVENPORT).statistic == pytest.approx(13.5 / 3.5)
    assert found.test(IMAN_DAVENPORT).degrees == (2, 6)


def test_blocks_that_all_agree_give_an_infinite_f() -> None:
    found = compare(frame([[1, 2, 3], [4, 5, 6], [0, 7, 9]]))
    assert found.test(FRIEDMAN).statistic == pytest.approx(6)
    assert found.test(IMAN_DAVENPORT).statistic == math.inf
    assert found.test(IMAN_DAVENPORT).p_value == 0
    assert iman_davenport(5.9, 3, 3).statistic == pytest.approx(118)


# Demsar, Table 5 (a): q at 0.05 and 0.10 for 2 to 10 methods.
@pytest.mark.parametrize(
    ("alpha", "published"),
    [
        (0.05, [1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164]),
        (0.10, [1.645, 2.052, 2.291, 2.459, 2.589, 2.693, 2.780, 2.855, 2.920]),
    ],
)
def test_critical_difference_has_the_published_q(alpha: float, published: list[float]) -> None:
    blocks = 7
    for methods, q in enumerate(published, start=2):
        scale = math.sqrt(methods * (methods + 1) / (6 * blocks))
        assert critical_difference(methods, blocks, alpha) / scale == pytest.approx(q, abs=1.5e-3)


def test_a_pair_differs_where_p_is_below_alpha() -> None:
    """The p-values are scikit-posthocs', the critical difference is ours."""
    random = np.random.default_rng(0)
    verdicts = []
    for shift in (0.0, 0.3, 0.6, 1.2):
        accuracies = frame((random.normal(size=(15, 4)) + shift * np.arange(4)).tolist())
        for alpha in (0.01, 0.05, 0.2):
            found = compare(accuracies, alpha).nemenyi
            assert found is not None
            assert len(found.pairs) == 6
            assert [pair.differ for pair in found.pairs] == [pair.p_value < alpha for pair in found.pairs]
            verdicts += [pair.differ for pair in found.pairs]
    assert 10 < sum(verdicts) < len(verdicts) - 10


def test_ranks_and_accuracies_give_the_same_where_no_method_ties() -> None:
    random = np.random.default_rng(1)
    accuracies = frame((random.normal(size=(12, 4)) + 0.5 * np.arange(4)).tolist())
    ours, of_ranks = compare(accuracies), compare_ranks(rank(accuracies))
    for name in (FRIEDMAN, IMAN_DAVENPORT):
        one, other = ours.test(name), of_ranks.test(name)
        assert dataclasses.astuple(one)[1] == pytest.approx(dataclasses.astuple(other)[1])
        assert one.p_value == pytest.approx(other.p_value)
    assert ours.nemenyi is not None and of_ranks.nemenyi is not None
    for pair, same in zip(ours.nemenyi.pairs, of_ranks.nemenyi.pairs, strict=True):
        assert dataclasses.astuple(pair) == pytest.approx(dataclasses.astuple(same))
    assert ours.methods[0].mean_accuracy is not None
    assert of_ranks.methods[0].mean_accuracy is None
    with pytest.raises(KeyError):
        of_ranks.test(ANOVA)


def test_the_level_of_the_critical_difference_is_alpha() -> None:
    assert level_of_difference(critical_difference(4, 36, 0.07), 4, 36) == pytest.approx(0.07)


def test_two_methods_are_compared_by_wilcoxon() -> None:
    # Differences 1 2 3 4 -5 6: ranks 1 to 6, the negative one is 5; exact p = 2 * 10 / 64.
    found = compare(frame([[0, 1], [0, 2], [0, 3], [0, 4], [5, 0], [0, 6]]))
    assert [test.name for test in found.tests] == [ANOVA, WILCOXON]
    assert found.test(WILCOXON).statistic == 5
    assert found.test(WILCOXON).p_value == pytest.approx(0.3125)
    assert found.nemenyi is None
    assert [method.name for method in found.methods] == ["b", "a"]


def test_blocks_that_tie_two_methods_count_for_both() -> None:
    # The ranks of |0 0 1 2| are 1.5 1.5 3 4: half of the zeros' 3 goes to each side.
    found = compare(frame([[1, 1], [2, 2], [1, 0], [2, 0]])).test(WILCOXON)
    assert found.statistic == 1.5


def test_blocks_left_out_are_named_and_change_nothing_else() -> None:
    lacking = pd.concat([DEMSAR, DEMSAR.tail(1).assign(b=math.nan)], ignore_index=True)
    found = compare(lacking, missing="drop")
    assert found.left_out == ("14",)
    assert dataclasses.replace(found, left_out=()) == compare(DEMSAR)
    with pytest.raises(ValueError, match="accuracies: got no value in 14, b"):
        compare(lacking)


def test_the_frame_stays_as_it_was() -> None:
    accuracies = DEMSAR.copy()
    compare(accuracies)
    compare_ranks(rank(accuracies))
    pd.testing.assert_frame_equal(accuracies, DEMSAR)


@pytest.mark.parametrize("alpha", [0, 1, -0.1, math.nan])
def test_bad_alpha(alpha: float) -> None:
    for call in (compare, compare_ranks):
        with pytest.raises(ValueError, match=r"alpha: got .*; expected a number between 0 and 1"):
            call(rank(DEMSAR), alpha)
    with pytest.raises(ValueError, match="alpha: got"):
        critical_difference(4, 36, alpha)


def test_bad_ranks_and_sizes() -> None:
    with pytest.raises(ValueError, match="ranks: got 2 methods; expected at least 3"):
        compare_ranks(frame([[1, 2], [2, 1]]))
    with pytest.raises(ValueError, match=r"ranks: got 1.0 to 4.0; expected 1 to 3"):
        compare_ranks(frame([[1, 2, 3], [1, 2, 4]]))
    with pytest.raises(ValueError, match="ranks: got no value in 1, c"):
        compare_ranks(frame([[1, 2, 3], [1, 2, math.nan]]))
    for methods, blocks in ((1, 5), (3, 0)):
        with pytest.raises(ValueError, match=f"methods, blocks: got {methods}, {blocks}; expected"):
            critical_difference(methods, blocks)
