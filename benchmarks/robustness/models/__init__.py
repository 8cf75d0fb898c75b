"""The paper's networks: dense, shallow convolutional, and torchvision's, each with the layer that the paper adds."""

from benchmarks.robustness.models.building import ACTIVATIONS, NAMES, PLACES, build, check
from benchmarks.robustness.models.dense import DenseNetwork, dense_drelu, dense_relu
from benchmarks.robustness.models.headed import HeadedNetwork

__all__ = [
    "ACTIVATIONS",
    "NAMES",
    "PLACES",
    "DenseNetwork",
    "HeadedNetwork",
    "build",
    "check",
    "dense_drelu",
    "dense_relu",
]
