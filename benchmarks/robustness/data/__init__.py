"""The data sets of the paper's experiment."""

from benchmarks.robustness.data.augmentation import CropAndFlip
from benchmarks.robustness.data.digits import SPLIT_SIZES, Digits, load_digits
from benchmarks.robustness.data.generated import GeneratedImages, MixedPart
from benchmarks.robustness.data.loading import NAMES, TEST_SAMPLES, check, load
from benchmarks.robustness.data.parts import Dataset, Part, Split, StoredPart
from benchmarks.robustness.data.splitting import SPLIT_SEED, stratified_share, stratified_split

__all__ = [
    "NAMES",
    "SPLIT_SEED",
    "SPLIT_SIZES",
    "TEST_SAMPLES",
    "CropAndFlip",
    "Dataset",
    "Digits",
    "GeneratedImages",
    "MixedPart",
    "Part",
    "Split",
    "StoredPart",
    "check",
    "load",
    "load_digits",
    "stratified_share",
    "stratified_split",
]
