"""The tests: one-way ANOVA, Friedman, Iman and Davenport's F, Nemenyi; Wilcoxon's for two methods.

Source: J. Demsar, Statistical comparisons of classifiers over multiple data sets, JMLR 7 (2006), which the paper cites.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

import pandas as pd
import scikit_posthocs
from scipy import stats

from studies.drelu_paper.statistics.frames import Missing, complete

ANOVA, FRIEDMAN, IMAN_DAVENPORT, WILCOXON = "ANOVA F", "Friedman chi2", "Iman-Davenport F", "Wilcoxon T"


@dataclass(frozen=True)
class HypothesisTest:
    """A test of "the methods do not differ", with its degrees of freedom and the statistic that p = alpha has.

    The statistic is infinite where all blocks agree as no chance could make them. Wilcoxon's has no critical value.
    """

    name: str
    statistic: float
    degrees: tuple[int, ...]
    p_value: float
    critical: float | None


@dataclass(frozen=True)
class Method:
    """Means over the blocks; rank 1 is the highest accuracy. ``mean_accuracy`` is None where only ranks are known."""

    name: str
    mean_accuracy: float | None
    mean_rank: float


@dataclass(frozen=True)
class Pair:
    """Two methods, the one with the better mean rank first; ``differ`` if the difference exceeds the critical one."""

    better: str
    worse: str
    rank_difference: float
    p_value: float
    differ: bool


@dataclass(frozen=True)
class Nemenyi:
    """All pairs; ``critical_difference`` is between mean ranks."""

    critical_difference: float
    pairs: tuple[Pair, ...]


@dataclass(frozen=True)
class Comparison:
    """What the tests say at the level ``alpha``: the best mean rank first; ``left_out`` are blocks that lack a cell.

    Of two methods there are ANOVA and Wilcoxon, and no Nemenyi; of ranks alone there is no ANOVA.
    """

    alpha: float
    blocks: int
    left_out: tuple[str, ...]
    methods: tuple[Method, ...]
    tests: tuple[HypothesisTest, ...]
    nemenyi: Nemenyi | None

    def test(self, name: str) -> HypothesisTest:
        """The test of this name; KeyError if it was not made."""
        return {one.name: one for one in self.tests}[name]

    def mean_rank(self, method: str) -> float:
        """Of this method; KeyError if it was not compared."""
        return {one.name: one.mean_rank for one in self.methods}[method]


def compare(accuracies: pd.DataFrame, alpha: float = 0.05, missing: Missing = "error") -> Comparison:
    """Compare the methods (columns) over the blocks (rows), at a level of significance in (0, 1).

    Tied accuracies share the mean of their ranks, and Friedman's statistic is corrected for them (scipy).

    Raises:
        TypeError, ValueError: as ``frames.complete``; also an alpha outside of (0, 1).
    """
    _check_alpha(alpha)
    kept, left_out = complete(accuracies, missing)
    columns = [kept[name] for name in kept.columns]
    blocks, methods = kept.shape
    anova = _f_test(ANOVA, float(stats.f_oneway(*columns).statistic), (methods - 1, (blocks - 1) * methods), alpha)
    ranks = rank(kept)
    if methods == 2:
        # "zsplit" is Demsar's way with ties: they count for both.
        found = stats.wilcoxon(*columns, zero_method="zsplit")
        tests = (anova, HypothesisTest(WILCOXON, float(found.statistic), (), float(found.pvalue), None))
        return Comparison(alpha, blocks, left_out, _methods(ranks, kept), tests, None)
    friedman = _friedman(float(stats.friedmanchisquare(*columns).statistic), methods, alpha)
    tests = (anova, friedman, iman_davenport(friedman.statistic, blocks, methods, alpha))
    p_values = scikit_posthocs.posthoc_nemenyi_friedman(kept.reset_index(drop=True))
    return Comparison(alpha, blocks, left_out, _methods(ranks, kept), tests, _nemenyi(ranks, p_values, alpha))


def compare_ranks(ranks: pd.DataFrame, alpha: float = 0.05) -> Comparison:
    """The tests on ranks as somebody gives them, right or wrong, by the formulas of Demsar's section 3.2.2.

    Friedman's chi2 is 12 N / (k (k + 1)) (sum of R^2 - k (k + 1)^2 / 4) with the mean ranks R. It takes for granted
    that every block ranks 1 to k. For accuracies, take ``compare``: it ranks them itself.

    Raises:
        TypeError, ValueError: as ``compare``; also less than three methods, or a rank outside of 1 to k.
    """
    _check_alpha(alpha)
    ranks, _ = complete(ranks, name="ranks")
    blocks, methods = ranks.shape
    if methods < 3:
        raise ValueError(f"ranks: got {methods} methods; expected at least 3")
    if ranks.min(axis=None) < 1 or ranks.max(axis=None) > methods:
        raise ValueError(f"ranks: got {ranks.min(axis=None)} to {ranks.max(axis=None)}; expected 1 to {methods}")
    means = ranks.mean()
    statistic = 12 * blocks / (methods * (methods + 1)) * float((means**2).sum() - methods * (methods + 1) ** 2 / 4)
    tests = (_friedman(statistic, methods, alpha), iman_davenport(statistic, blocks, methods, alpha))
    levels = [[level_of_difference(abs(one - other), methods, blocks) for one in means] for other in means]
    p_values = pd.DataFrame(levels, index=means.index, columns=means.index)
    return Comparison(alpha, blocks, (), _methods(ranks, None), tests, _nemenyi(ranks, p_values, alpha))


def rank(accuracies: pd.DataFrame) -> pd.DataFrame:
    """The rank of every cell in its block: 1 is the highest accuracy, ties share their mean."""
    return accuracies.rank(axis=1, ascending=False)


def iman_davenport(chi2: float, blocks: int, methods: int, alpha: float = 0.05) -> HypothesisTest:
    """Iman and Davenport's F = (N - 1) chi2 / (N (k - 1) - chi2), less conservative than Friedman's chi2 itself."""
    most = blocks * (methods - 1)  # of chi2: all blocks rank alike
    statistic = math.inf if math.isclose(chi2, most, rel_tol=1e-9) else (blocks - 1) * chi2 / (most - chi2)
    return _f_test(IMAN_DAVENPORT, statistic, (methods - 1, (methods - 1) * (blocks - 1)), alpha)


def critical_difference(methods: int, blocks: int, alpha: float = 0.05) -> float:
    """Nemenyi's: q_alpha sqrt(k (k + 1) / (6 N)); q_alpha is that of the studentized range, over sqrt(2)."""
    _check_alpha(alpha)
    if methods < 2 or blocks < 1:
        raise ValueError(f"methods, blocks: got {methods}, {blocks}; expected at least 2 and 1")
    q = float(stats.studentized_range.isf(alpha, methods, math.inf)) / math.sqrt(2)
    return q * _standard_error(methods, blocks)


def level_of_difference(difference: float, methods: int, blocks: int) -> float:
    """The alpha whose critical difference this is: the p-value of a difference between two mean ranks."""
    scaled = difference / _standard_error(methods, blocks) * math.sqrt(2)
    return float(stats.studentized_range.sf(scaled, methods, math.inf))


def _standard_error(methods: int, blocks: int) -> float:
    return math.sqrt(methods * (methods + 1) / (6 * blocks))


def _f_test(name: str, statistic: float, degrees: tuple[int, int], alpha: float) -> HypothesisTest:
    p_value, critical = stats.f.sf(statistic, *degrees), stats.f.isf(alpha, *degrees)
    return HypothesisTest(name, statistic, degrees, float(p_value), float(critical))


def _friedman(statistic: float, methods: int, alpha: float) -> HypothesisTest:
    p_value, critical = stats.chi2.sf(statistic, methods - 1), stats.chi2.isf(alpha, methods - 1)
    return HypothesisTest(FRIEDMAN, statistic, (methods - 1,), float(p_value), float(critical))


def _methods(ranks: pd.DataFrame, accuracies: pd.DataFrame | None) -> tuple[Method, ...]:
    means = ranks.mean().sort_values(kind="stable")
    return tuple(
        Method(str(name), None if accuracies is None else float(accuracies[name].mean()), float(mean))
        for name, mean in means.items()
    )


def _nemenyi(ranks: pd.DataFrame, p_values: pd.DataFrame, alpha: float) -> Nemenyi:
    blocks, methods = ranks.shape
    critical = critical_difference(methods, blocks, alpha)
    means = ranks.mean().sort_values(kind="stable")
    pairs = []
    for better, worse in combinations(means.index, 2):
        difference = float(means[worse] - means[better])
        pairs.append(
            Pair(str(better), str(worse), difference, float(p_values.loc[better, worse]), difference > critical)
        )
    return Nemenyi(critical, tuple(pairs))


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise ValueError(f"alpha: got {alpha}; expected a number between 0 and 1")
