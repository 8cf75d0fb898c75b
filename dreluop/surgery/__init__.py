"""Model surgery: capped activations in networks that exist already, and their caps (docs/surgery.md)."""

from dreluop.caps.calibration import CalibratedLayer, Calibration, calibrate_caps
from dreluop.caps.inspection import CapSummary, cap_summary, freeze_caps, set_caps
from dreluop.surgery.checkpoints import LoadedState, load_float_state_dict
from dreluop.surgery.guards import RangeGuard, guarded_elements
from dreluop.surgery.inserting import HeadedLinear, StemmedConv2d, insert_head, insert_stem
from dreluop.surgery.plain import to_torch
from dreluop.surgery.protecting import Guard, Protection, protect
from dreluop.surgery.replacing import replace_activations
from dreluop.surgery.report import Report, Site
from dreluop.surgery.sites import ResidualDReLU

__all__ = [
    "CalibratedLayer",
    "Calibration",
    "CapSummary",
    "Guard",
    "HeadedLinear",
    "LoadedState",
    "Protection",
    "RangeGuard",
    "Report",
    "ResidualDReLU",
    "Site",
    "StemmedConv2d",
    "calibrate_caps",
    "cap_summary",
    "freeze_caps",
    "guarded_elements",
    "insert_head",
    "insert_stem",
    "load_float_state_dict",
    "protect",
    "replace_activations",
    "set_caps",
    "to_torch",
]
