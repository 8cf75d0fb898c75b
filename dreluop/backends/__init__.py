"""Implementations of the operators: `reference` (pure PyTorch) and `native` (compiled)."""
