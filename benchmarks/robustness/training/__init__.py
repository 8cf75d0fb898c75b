"""Training under loss (1) of the paper, and the paper's two baselines."""

from benchmarks.robustness.training.config import TrainingConfig
from benchmarks.robustness.training.history import EpochRecord, History
from benchmarks.robustness.training.loop import train
from benchmarks.robustness.training.objectives import CAP_FLOOR, caps_of, total_loss

__all__ = ["CAP_FLOOR", "EpochRecord", "History", "TrainingConfig", "caps_of", "total_loss", "train"]
