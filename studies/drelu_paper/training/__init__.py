"""Training under loss (1) of the paper, and the paper's two baselines."""

from studies.drelu_paper.training.config import TrainingConfig
from studies.drelu_paper.training.history import EpochRecord, History
from studies.drelu_paper.training.loop import train
from studies.drelu_paper.training.objectives import CAP_FLOOR, caps_of, total_loss

__all__ = ["CAP_FLOOR", "EpochRecord", "History", "TrainingConfig", "caps_of", "total_loss", "train"]
