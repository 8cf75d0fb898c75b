"""Bit flips in a network's memory, and the accuracy that they leave."""

from dreluop.faults.curve import fault_curve, plot
from dreluop.faults.injection import Injection, bit_flips

__all__ = ["Injection", "bit_flips", "fault_curve", "plot"]
