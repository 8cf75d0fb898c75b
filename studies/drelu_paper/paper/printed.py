"""What the paper prints about its own tables, beside what its figures give."""

from __future__ import annotations

from dataclasses import dataclass

from scipy import stats

from studies.drelu_paper.paper.tables import METHODS, PaperTable
from studies.drelu_paper.statistics.comparison import (
    ANOVA,
    FRIEDMAN,
    IMAN_DAVENPORT,
    Comparison,
    critical_difference,
    level_of_difference,
)
from studies.drelu_paper.statistics.frames import block_name

TABLE_OF_CLAIMS = 2


@dataclass(frozen=True)
class WrongRank:
    """A cell whose printed rank is not that of its accuracy; ``rank`` is."""

    block: str
    method: str
    accuracy: float
    printed_rank: float
    rank: float


def wrong_ranks(table: PaperTable) -> list[WrongRank]:
    """The cells whose printed rank disagrees with the accuracies of their block; tied methods may be in any order.

    A block that lacks an accuracy has no ranks to compare with, and is not looked at.
    """
    accuracies = table.accuracies.dropna()
    lowest, mean, highest = (accuracies.rank(axis=1, ascending=False, method=how) for how in ("min", "average", "max"))
    found = []
    for block, accuracy in accuracies.iterrows():
        for method, printed in table.ranks.loc[block].items():
            if not lowest.loc[block, method] <= printed <= highest.loc[block, method]:
                rank = mean.loc[block, method]
                found.append(WrongRank(block_name(block), method, float(accuracy[method]), float(printed), float(rank)))
    return found


def no_rankings(table: PaperTable) -> list[str]:
    """The blocks whose printed ranks are not 1 to k, each once."""
    expected = list(range(1, table.ranks.shape[1] + 1))
    return [block_name(block) for block, ranks in table.ranks.iterrows() if sorted(ranks) != expected]


@dataclass(frozen=True)
class Claim:
    """A figure that the paper prints about Table 2, as text with its digits, and what the table gives.

    ``from_printed_ranks`` is None where the printed ranks change nothing.
    """

    figure: str
    printed: str
    from_accuracies: float
    from_printed_ranks: float | None = None
    comment: str = ""

    @property
    def holds(self) -> bool:
        """Whether the printed figure follows from the accuracies, rounded or cut to its digits."""
        digits = len(self.printed.partition(".")[2])
        return abs(float(self.printed) - self.from_accuracies) < 10.0**-digits


def claims(accuracies: Comparison, ranks: Comparison) -> list[Claim]:
    """Section 6.2 of the paper, figure by figure, from Table 2 and from its printed ranks."""
    anova = accuracies.test(ANOVA)
    found = [
        Claim("F of ANOVA", "17.4", anova.statistic),
        Claim("its critical value at alpha 0.01", "3.92", _critical_f(0.01, *anova.degrees)),
    ]
    for figure, printed, name in (("Friedman's chi2", "39.43", FRIEDMAN), ("F_F", "20.12", IMAN_DAVENPORT)):
        comment = "the text says that it used the printed ranks; the figure is that of the accuracies"
        found.append(Claim(figure, printed, accuracies.test(name).statistic, ranks.test(name).statistic, comment))
    first, second = accuracies.test(IMAN_DAVENPORT).degrees
    for printed, degrees in (("2.13", 120), ("2.18", 60)):
        figure, value = f"critical F({first}, {second}) at alpha 0.01", _critical_f(0.01, first, second)
        comment = f"F({first}, {degrees}) at alpha 0.10 is {_critical_f(0.1, first, degrees):.2f}"
        found.append(Claim(figure, printed, value, comment=comment))
    return [*found, _critical_difference(accuracies), *_differences(accuracies, ranks)]


def _critical_difference(accuracies: Comparison) -> Claim:
    printed = "0.656"
    methods, blocks = len(accuracies.methods), accuracies.blocks
    at = {alpha: critical_difference(methods, blocks, alpha) for alpha in (0.01, 0.05, 0.1)}
    return Claim(
        "critical difference (no alpha is stated; here 0.05)",
        printed,
        at[0.05],
        comment=f"{at[0.1]:.3f} at alpha 0.10, {at[0.01]:.3f} at 0.01; {printed} is that of alpha "
        f"{level_of_difference(float(printed), methods, blocks):.2f}",
    )


def _differences(accuracies: Comparison, ranks: Comparison) -> list[Claim]:
    found = []
    for method, printed in (("at", "0.86"), ("trades-1", "1.89"), ("trades-6", "1.14")):
        name = METHODS[method]
        ours, theirs = (one.mean_rank(name) - one.mean_rank(METHODS["drelu"]) for one in (accuracies, ranks))
        found.append(Claim(f"mean rank of {name} less that of D-ReLU", printed, ours, theirs))
    return found


def _critical_f(alpha: float, first: int, second: int) -> float:
    return float(stats.f.isf(alpha, first, second))
