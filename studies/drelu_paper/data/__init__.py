"""The data sets of the paper's experiment."""

from studies.drelu_paper.data.digits import SPLIT_SIZES, Digits, load_digits
from studies.drelu_paper.data.generated import GeneratedImages, MixedPart
from studies.drelu_paper.data.loading import NAMES, ROOT, TEST_SAMPLES, check, load
from studies.drelu_paper.data.parts import Dataset, Part, Split
from studies.drelu_paper.data.splitting import SPLIT_SEED, stratified_share, stratified_split

__all__ = [
    "NAMES",
    "ROOT",
    "SPLIT_SEED",
    "SPLIT_SIZES",
    "TEST_SAMPLES",
    "Dataset",
    "Digits",
    "GeneratedImages",
    "MixedPart",
    "Part",
    "Split",
    "check",
    "load",
    "load_digits",
    "stratified_share",
    "stratified_split",
]
