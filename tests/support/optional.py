"""Packages that some environments cannot have."""

from __future__ import annotations

import importlib
from typing import Any

import pytest


def torchvision_or_skip(module: str = "torchvision") -> Any:
    """torchvision, or a skip that tells the real error: one built for another torch fails at whatever comes first."""
    try:
        return importlib.import_module(module)
    except Exception as error:
        pytest.skip(f"torchvision cannot be imported: {type(error).__name__}: {error}", allow_module_level=True)
