"""The paper's networks: dense, shallow convolutional, and torchvision's, each with the layer that the paper adds."""

from studies.drelu_paper.models.building import ACTIVATIONS, NAMES, PLACES, build, check
from studies.drelu_paper.models.dense import DenseNetwork, dense_drelu, dense_relu
from studies.drelu_paper.models.headed import HeadedNetwork

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
