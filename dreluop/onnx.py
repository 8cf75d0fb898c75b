"""The operators in ONNX, for ``torch.onnx.export`` (docs/export.md). Needs onnxscript; ``dreluop`` imports this not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir
from onnx_ir import DataType
from onnxscript import opset18

from dreluop._internal import torch_private
from dreluop._internal.shapes import bias_view, broadcast_shape
from dreluop._internal.zeroed import ABOVE, NAN
from dreluop.ops.handles import BY_OVERLOAD


def translations() -> dict[torch_private.OpOverload, Callable[..., Any]]:
    """A new table for ``torch.onnx.export(..., dynamo=True, custom_translation_table=...)``.

    ``y = Max(0, Min(x, cap))``, with the cap cast to x's type and in a shape that broadcasts. Not ``Clip``, which gives
    cap where cap <= 0 and leaves x as it is where cap is NaN. A ``Where`` each for ``above="zero"`` and ``nan="zero"``.
    A bias and a residual are added before, in float32 (float64 for float64); the penalty is a ``ReduceSumSquare`` in
    float64. Of ``save="mask"`` there is y only, and an empty tensor for the mask, which nothing but a backward pass
    reads.
    """
    return {
        getattr(operators, function.__name__): function
        for operators in BY_OVERLOAD.values()
        for function in (capped_relu, capped_relu_with_aux, cap_penalty)
    }


# Tensors are values of a graph that is being built, their types those of onnx_ir; the rest is as in ops.schemas.


def capped_relu(x: Any, cap: Any, dim: int = 1, bias: Any = None, residual: Any = None, zeroed: int = 0) -> Any:
    shape, total = tuple(x.shape), x
    if bias is not None or residual is not None:
        wide = _accumulation_type(x)
        total = _cast(x, wide)
        if bias is not None:
            total = opset18.Add(total, _viewed(_cast(bias, wide), bias, bias_view(shape, tuple(bias.shape), dim)))
        if residual is not None:
            total = opset18.Add(total, _cast(residual, wide))
        if wide != x.dtype:
            total = opset18.Cast(total, to=x.dtype)
    bound = _viewed(_cast(cap, x.dtype), cap, broadcast_shape(shape, tuple(cap.shape), dim))
    # The zero comes first: of Max(Min(x, cap), 0) with one constant cap, onnxscript's optimizer makes a Clip, which
    # loses a NaN, and of two with the same x a graph that cannot be loaded.
    y = opset18.Max(_constant(0, x.dtype), opset18.Min(total, bound))
    if zeroed & ABOVE:
        y = opset18.Where(opset18.Greater(total, bound), _constant(0, x.dtype), y)
    return opset18.Where(opset18.IsNaN(y), _constant(0, x.dtype), y) if zeroed & NAN else y


def capped_relu_with_aux(
    x: Any,
    cap: Any,
    dim: int,
    mask: bool,
    balancer: float | None,
    bias: Any = None,
    residual: Any = None,
    zeroed: int = 0,
) -> tuple[Any, Any, Any]:
    no_penalty = _constant([], _accumulation_type(cap))
    return (
        capped_relu(x, cap, dim, bias, residual, zeroed),
        _constant([], DataType.UINT8),
        no_penalty if balancer is None else cap_penalty([cap], balancer),
    )


def cap_penalty(caps: Sequence[Any], balancer: float) -> Any:
    squares = [opset18.ReduceSumSquare(_cast(cap, DataType.DOUBLE), keepdims=0) for cap in caps]
    total = opset18.Mul(opset18.Sum(*squares), _constant(balancer, DataType.DOUBLE))
    return opset18.Cast(total, to=_accumulation_type(*caps))


def _accumulation_type(*values: Any) -> DataType:
    return DataType.DOUBLE if any(value.dtype == DataType.DOUBLE for value in values) else DataType.FLOAT


def _cast(value: Any, dtype: DataType) -> Any:
    return value if value.dtype == dtype else opset18.Cast(value, to=dtype)


def _viewed(value: Any, like: Any, view: tuple[int, ...]) -> Any:
    """value, which has like's shape, in another one."""
    if tuple(like.shape) == view:
        return value
    return opset18.Reshape(value, _constant(list(view), DataType.INT64))


def _constant(value: Any, dtype: DataType) -> Any:
    # Which the annotation of onnxscript does not know, as it is wider.
    tensor: Any = onnx_ir.tensor(value, dtype=dtype)
    return opset18.Constant(value=tensor)
