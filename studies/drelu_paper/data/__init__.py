"""The data sets of the paper's experiment."""

from studies.drelu_paper.data.augmentation import CropAndFlip
from studies.drelu_paper.data.digits import SPLIT_SIZES, Digits, load_digits
from studies.drelu_paper.data.generated import GeneratedImages, MixedPart
from studies.drelu_paper.data.loading import NAMES, TEST_SAMPLES, check, load
from studies.drelu_paper.data.parts import Dataset, Part, Split, StoredPart
from studies.drelu_paper.data.splitting import SPLIT_SEED, stratified_share, stratified_split

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
