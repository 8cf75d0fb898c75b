"""Bit flips in a network's memory, and the accuracy that they leave."""

from dreluop.faults.curve import fault_curve, plot
from dreluop.faults.injection import Injection, bit_flips
from dreluop.faults.weights import ProtectedWeights, Repair, protect_weights

__all__ = [
    "Injection",
    "ProtectedWeights",
    "Repair",
    "bit_flips",
    "fault_curve",
    "plot",
    "protect_weights",
]
