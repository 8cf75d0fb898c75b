"""Names that the result file has and its tables and pictures look for; needs no package."""

FILE_NAME = "statistics.json"

ANOVA = "ANOVA F"
FRIEDMAN = "Friedman chi2"
IMAN_DAVENPORT = "Iman-Davenport F"
WILCOXON = "Wilcoxon T"

# What a comparison's ranks are of.
ACCURACIES = "accuracies"
PRINTED_RANKS = "printed ranks"
REPAIRED_RANKS = "printed ranks, ranked again in each block"
MODELS = "means over the attacks, a block per model"
