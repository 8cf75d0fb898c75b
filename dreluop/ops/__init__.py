"""The operators: schemas, what they compute in plain torch, and the graphs that they become. Imports no backend."""

from dreluop.ops.decompose import decompositions

__all__ = ["decompositions"]
