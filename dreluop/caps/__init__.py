"""The caps of a model: optimizer groups, calibration, statistics."""
