"""Nothing is measured on the reference by accident."""

from __future__ import annotations

import argparse

import torch

from dreluop._internal.env import ENVIRONMENT_VARIABLE, requested
from dreluop.backends import native


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


def served_by_cuda(parser: argparse.ArgumentParser) -> None:
    """Ends the program unless there is a CUDA device, and the native kernels serve it."""
    if not torch.cuda.is_available():
        parser.error(f"torch sees no CUDA device (torch {torch.__version__})")
    reason = native.cuda_reason()
    if reason is not None:
        parser.error(f"the native CUDA kernels do not serve, and the reference is not measured unasked: {reason}")
