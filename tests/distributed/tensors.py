"""DTensors of known values, in any placement."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor

needs_in_place = pytest.mark.skipif(
    torch.__version__ < "2.11", reason="torch 2.10 has no operators on DTensors that return nothing"
)

MESHES = {2: (2,), 4: (2, 2)}
_NAMES = ("rows", "columns")


def mesh_of(*shape: int) -> DeviceMesh:
    """All processes as a mesh of this shape, or of the usual one for their number."""
    shape = shape or MESHES[torch.distributed.get_world_size()]
    return init_device_mesh("cpu", shape, mesh_dim_names=_NAMES[: len(shape)])


def placed(value: Tensor | None, mesh: DeviceMesh, placements: Any) -> DTensor | None:
    """The tensor so placed; of a Partial sum the first process along the mesh dimension holds everything."""
    if value is None:
        return None
    replicated = [Replicate() if p.is_partial() else p for p in placements]
    local = distribute_tensor(value, mesh, replicated, src_data_rank=None).to_local().clone()
    coordinate = mesh.get_coordinate()
    assert coordinate is not None
    if any(p.is_partial() and at > 0 for p, at in zip(placements, coordinate, strict=True)):
        local.zero_()
    return DTensor.from_local(local, mesh, placements, run_check=False, shape=value.shape, stride=value.stride())


def full_tensor(value: Any) -> Any:
    """The full tensors of DTensors in lists and tuples."""
    if isinstance(value, list | tuple):
        return [full_tensor(item) for item in value]
    return value.full_tensor() if isinstance(value, DTensor) else value


def integers(*shape: int, low: int = -4, high: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random numbers whose sums are exact in any order."""
    return torch.randint(low, high, shape).to(dtype)
