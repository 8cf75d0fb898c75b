"""Build information and launch plans of the compiled part of dreluop."""

from collections.abc import Sequence
from typing import Literal, TypedDict

class BuildInfo(TypedDict):
    version: str
    compiler: str
    torch_headers: str
    torch_target: str

class CpuPlan(TypedDict):
    order: list[int]
    outer: int
    caps: int
    inner: int
    variant: Literal["runs", "columns"]
    row: int
    rows: int
    tile_rows: int
    tile_columns: int
    tiles: int
    partials: int

def build_info() -> BuildInfo:
    """What this was built with: version, compiler, torch headers and lowest torch."""

def cpu_capability() -> Literal["default", "avx2", "avx512"]:
    """Instruction set in use; a lower one can be asked for by DRELUOP_CPU_CAPABILITY."""

def cpu_plan(shape: Sequence[int], strides: Sequence[int], cap_shape: Sequence[int], dim: int = 1) -> CpuPlan:
    """How the CPU kernels traverse and tile an activation.

    Raises:
        ValueError: the cap's shape does not fit, dim is out of range, or strides and shape differ in length.
    """
