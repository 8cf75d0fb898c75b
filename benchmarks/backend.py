"""Nothing is measured on the reference by accident."""

from __future__ import annotations

import argparse

from dreluop.backends import native
from dreluop.backends.names import ENVIRONMENT_VARIABLE, requested


def served_by(parser: argparse.ArgumentParser) -> str:
    """The backend that serves CPU tensors; ends the program if the compiled one failed to load unasked."""
    if native.load_error is None:
        return "native"
    if requested() != "reference":
        parser.error(
            f"the compiled operators do not load: {native.load_error}. Build them, or set "
            f"{ENVIRONMENT_VARIABLE}=reference to measure the slow reference"
        )
    return "reference"
