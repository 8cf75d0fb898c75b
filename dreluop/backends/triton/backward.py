"""backward on Triton kernels, with the arguments and results of `dreluop.backends.reference.capped_relu_backward`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dreluop._internal import operator_checks
from dreluop._internal.zeroed import ABOVE
from dreluop.backends.triton import plan, tuning
from dreluop.backends.triton.call import KernelCall, SavedInfo, nothing, same_device
from dreluop.backends.triton.kernels.backward import backward_columns_kernel, backward_rows_kernel
from dreluop.backends.triton.kernels.reduction import reduction_kernel
from dreluop.backends.triton.kernels.types import ACCUMULATORS
from dreluop.backends.triton.launch import launch
from dreluop.backends.triton.plan import BackwardPlan, ColumnPlan, RowPlan
from dreluop.ops.call import BackwardCall
from dreluop.ops.composite import empty_as_saved


def capped_relu_backward(*arguments: Any, **keywords: Any) -> tuple[Tensor, Tensor, Tensor]:
    given = BackwardCall(*arguments, **keywords)
    grad, saved, cap, dim, order, need_x, need_cap, balancer, grad_penalty, bias, zeroed = given
    operator_checks.backward(given)
    same_device(grad, "grad", saved=saved, cap=cap, grad_penalty=grad_penalty)
    dx = empty_as_saved(grad, saved, order) if need_x else nothing(grad, grad.dtype)
    dcap = torch.empty(cap.shape if need_cap else (0,), dtype=cap.dtype, device=cap.device)
    dbias = nothing(grad, grad.dtype) if bias is None else torch.empty(bias.shape, dtype=bias.dtype, device=bias.device)
    info = SavedInfo(grad, saved, cap, order)
    call = KernelCall(
        grad,
        cap,
        dim,
        info.traversal_order,
        bias,
        grad=grad,
        y=info.y,
        dx=dx if need_x else None,
        packed=info.packed_strides,
    )
    if need_x or need_cap or bias is not None:
        weight = grad_penalty if balancer is not None and need_cap else None
        # Without channels there is a single cap and no bias to write.
        to_bias = dbias if bias is not None and bias.numel() > 0 else None
        Backward(call, info, cap, dcap if need_cap else None, to_bias, weight, balancer, zeroed).run(
            grad, dx if need_x else None
        )
    return dx, dcap, dbias


class Backward:
    """The launches of one call; ``dx``, ``dcap`` and ``dbias`` are None where not wanted."""

    def __init__(
        self,
        call: KernelCall,
        info: SavedInfo,
        cap: Tensor,
        dcap: Tensor | None,
        dbias: Tensor | None,
        grad_penalty: Tensor | None,
        balancer: float | None,
        zeroed: int,
    ) -> None:
        self.nothing_capped = bool(zeroed & ABOVE)
        self.call, self.info, self.cap, self.dcap, self.dbias = call, info, cap, dcap, dbias
        self.grad_penalty = grad_penalty
        self.factor = 2 * (balancer or 0.0)
        self.one_cap_over_channels = call.traversal.shared_cap and dcap is not None
        self.plan: BackwardPlan = plan.backward_plan(
            call.vec, call.layout, tuning.processors(call.device), call.tuning,
            one_cap_over_channels=self.one_cap_over_channels,
        )  # fmt: skip

    def run(self, grad: Tensor, dx: Tensor | None) -> None:
        # The sums of a gradient in fp64 must be better than fp32 allows.
        wide = torch.float64 in (t.dtype for t in (grad, self.dcap, self.dbias) if t is not None)
        self._make_workspace(grad.device, wide)
        rows, columns = self.plan.rows, self.plan.columns
        if rows is not None:
            self._run_rows(rows, grad, dx, wide)
        elif columns is not None:
            self._run_columns(columns, grad, dx, wide)
        if self.plan.second_launch:
            for to, partials, errors, weight in (
                (self.dcap, *self.partials[0], self.grad_penalty),
                (self.dbias, *self.partials[1], None),
            ):
                if to is not None:
                    self._reduce(to, partials, errors, weight)

    def _make_workspace(self, device: torch.device, wide: bool) -> None:
        def partials(wanted: bool) -> tuple[Tensor | None, Tensor | None]:
            if not wanted or self.plan.partials == 0:
                return None, None
            dtype = torch.float64 if wide else torch.float32
            sums = torch.empty(2, self.plan.partials, dtype=dtype, device=device)
            return sums[0], sums[1]

        self.partials = partials(self.dcap is not None), partials(self.dbias is not None)
        self.counters = None
        if self.plan.counters and (self.dcap is not None or self.dbias is not None):
            # Filled on the same stream, and captured with it.
            self.counters = torch.zeros(self.plan.counters, dtype=torch.int32, device=device)

    def _shared_arguments(self) -> tuple[Any, ...]:
        """What both kernels need to read operands, and to reduction."""
        call, info = self.call, self.info
        # One cap over all channels is finished by the second launch.
        dcap = None if self.one_cap_over_channels else self.dcap
        sizes, strides = call.cap_sizes(None if self.one_cap_over_channels else self.cap, dcap, self.dbias)
        (cap_partials, cap_errors), (bias_partials, bias_errors) = self.partials
        return (
            call.sizes, call.strides["grad"], call.strides["y"], call.strides["dx"], call.strides["packed"],
            info.packed_step, self.dcap, self.dbias, self.cap if self.grad_penalty is not None else None,
            sizes, *strides,
            self.grad_penalty, self.factor, cap_partials, cap_errors, bias_partials, bias_errors, self.counters,
        )  # fmt: skip

    def _caps(self) -> tuple[Tensor | None, int]:
        """The packed mask says all about regions, and y alone where nothing is capped."""
        if self.info.packed is not None or self.nothing_capped:
            return None, 0
        caps = self.call.readable(self.cap)
        return caps, self.call.stride_of(caps)

    def _run_rows(self, rows: RowPlan, grad: Tensor, dx: Tensor | None, wide: bool) -> None:
        call, layout, info = self.call, self.call.layout, self.info
        launch(
            backward_rows_kernel, rows.programs, grad.device,
            grad, info.y, info.packed, dx, *self._caps(), layout.caps, layout.inner,
            rows.segment_size, rows.segments_per_run, rows.segments, rows.per_split, rows.splits,
            *self._shared_arguments(),
            warps=call.tuning.row_warps, RUNS=rows.runs, WIDTH=rows.width, EDGES=rows.edges,
            ALONE=self.plan.partials == 0, ACCUMULATE=ACCUMULATORS[wide], VEC=call.vec, WIDE=call.wide,
            AT_ONCE=info.at_once(call), PARTIALS=min(256, plan.power_of_two(rows.splits)),
        )  # fmt: skip

    def _run_columns(self, columns: ColumnPlan, grad: Tensor, dx: Tensor | None, wide: bool) -> None:
        call, layout, info = self.call, self.call.layout, self.info
        launch(
            backward_columns_kernel, columns.programs, grad.device,
            grad, info.y, info.packed, dx, *self._caps(), call.numel, layout.caps, layout.inner, columns.row,
            columns.rows, call.numel // columns.row, columns.vecs, columns.tiles, columns.per_program,
            columns.row_blocks, *self._shared_arguments(),
            warps=call.tuning.column_warps, WIDTH=columns.width, HEIGHT=columns.height,
            ALONE=self.plan.partials == 0, ACCUMULATE=ACCUMULATORS[wide], VEC=call.vec, WIDE=call.wide,
            AT_ONCE=info.at_once(call), PARTIALS=min(8, plan.power_of_two(columns.row_blocks)),
        )  # fmt: skip

    def _reduce(self, to: Tensor, partials: Tensor | None, errors: Tensor | None, weight: Tensor | None) -> None:
        layout, p = self.call.layout, self.plan
        given_cap = self.cap if weight is not None else None
        if to is self.dcap and self.one_cap_over_channels:
            caps, repeat, inner, period = 1, 1, p.sum_columns, p.sum_columns
            to, given_cap = to.reshape(1), None if given_cap is None else given_cap.reshape(1)
            sizes: tuple[int, ...] = ()
            strides: list[tuple[int, ...]] = [(), ()]
        else:
            caps, repeat, inner, period = layout.caps, p.repeat, p.inner, layout.period if p.columns else layout.caps
            sizes, strides = self.call.cap_sizes(to, given_cap)
        reduction = plan.reduction_plan(caps, p.blocks * repeat * inner)
        launch(
            reduction_kernel, reduction.programs, to.device,
            partials, errors, caps, p.blocks * repeat * inner, p.sum_columns, repeat, period, inner, to, sizes,
            strides[0], given_cap, strides[1], weight, self.factor,
            ROWS=reduction.terms, COLUMNS=reduction.caps,
        )  # fmt: skip
