"""Nothing is measured on the reference by accident."""

from __future__ import annotations

import argparse
import os

from dreluop.backends import native


def served_by(parser: argparse.ArgumentParser) -> str:
    """The backend that serves CPU tensors; ends the program if the compiled one failed to load unasked."""
    if native.load_error is None:
        return "native"
    if os.environ.get(native.ENVIRONMENT_VARIABLE) != "reference":
        parser.error(
            f"the compiled operators do not load: {native.load_error}. Build them, or set "
            f"{native.ENVIRONMENT_VARIABLE}=reference to measure the slow reference"
        )
    return "reference"
