"""The caps of a model: optimizer groups, calibration, statistics, all in one parameter."""

from dreluop.caps.flat import flatten

__all__ = ["flatten"]
