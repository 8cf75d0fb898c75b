"""Model surgery: capped activations in networks that exist already."""

from dreluop.surgery.replacing import replace_activations
from dreluop.surgery.report import Report, Site
from dreluop.surgery.sites import ResidualDReLU

__all__ = ["Report", "ResidualDReLU", "Site", "replace_activations"]
