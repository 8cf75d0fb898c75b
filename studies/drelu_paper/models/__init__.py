"""The paper's networks: dense, shallow convolutional, and torchvision's, each with the layer that the paper adds."""

from studies.drelu_paper.models.building import NAMES, PLACES, build, check
from studies.drelu_paper.models.small import DenseNetwork, HeadedNetwork, dense_drelu, dense_relu

__all__ = ["NAMES", "PLACES", "DenseNetwork", "HeadedNetwork", "build", "check", "dense_drelu", "dense_relu"]
