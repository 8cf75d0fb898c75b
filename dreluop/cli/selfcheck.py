"""Compares every available backend with the reference on small inputs: the check behind `python -m dreluop`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from dreluop._internal import env
from dreluop._internal.checks import FLOAT_DTYPES
from dreluop._internal.zeroed import ABOVE, MOST, NAN
from dreluop.backends import reference, selection
from dreluop.ops import composite

# Triton compiles each of its kernels for every dtype and layout, in seconds: these reach all kernels.
_TRITON_CASES = ("float32, channel cap, contiguous", "bfloat16, channel cap, channels last")
_SPECIAL_VALUES = (float("nan"), float("inf"), -float("inf"), 0.0, -0.0, -1.0)


class Backend(NamedTuple):
    """A backend: the kinds of device that it serves, and why it does not serve the others."""

    name: str
    devices: tuple[str, ...]
    reasons: dict[str, str]


class Result(NamedTuple):
    """One comparison: the backend, the operator, the input in words, and whether it agreed."""

    backend: str
    operator: str
    case: str
    agrees: bool


def backends() -> list[Backend]:
    """Every backend. Initializes CUDA, where there is a GPU."""
    found = []
    for name in env.BACKENDS:
        reasons = {device: selection.unavailable_reason(name, device) for device in selection.DEFAULT_RULE}
        serves = tuple(device for device, reason in reasons.items() if reason is None)
        found.append(Backend(name, serves, {device: why for device, why in reasons.items() if why is not None}))
    return found


def run() -> list[Result]:
    """Compare all operators of all backends that serve a device that is there; empty if only the reference does."""
    return [
        result
        for backend in backends()
        for device in backend.devices
        if backend.name != "reference"
        for result in _compare(backend.name, device)
    ]


def _compare(backend: str, device: str) -> Iterator[Result]:
    calls = selection.operators_of(backend)
    generator = torch.Generator("cpu").manual_seed(0)
    for dtype in sorted(FLOAT_DTYPES, key=str):
        for case, x, cap in _inputs(dtype, device, generator):
            if backend == "triton" and case not in _TRITON_CASES:
                continue
            text = f"{device}, {case}"
            grad = torch.randn(x.shape, generator=generator, device="cpu").to(device, dtype)
            weight = torch.tensor(0.5, device=device)
            bias = torch.randn(cap.shape if cap.ndim > 1 else (5,), generator=generator, device="cpu").to(device)
            shifted = [
                f(x, cap, 1, True, 0.1, bias, grad)
                for f in (calls.capped_relu_with_aux, reference.capped_relu_with_aux)
            ]
            yield Result(
                backend, "capped_relu_with_aux", f"{text}, bias and residual", _same(shifted[0][:2], shifted[1][:2])
            )
            expected = reference.capped_relu_with_aux(x, cap, 1, True, 0.1)
            got = calls.capped_relu_with_aux(x, cap, 1, True, 0.1)
            yield Result(
                backend, "capped_relu_with_aux", text, _same(got[:2], expected[:2]) and _near(got[2], expected[2])
            )
            yield Result(backend, "capped_relu", text, _same(calls.capped_relu(x, cap, 1), expected[0]))
            for zeroed in (ABOVE, NAN, MOST):
                values = [f(x, cap, 1, None, None, zeroed) for f in (calls.capped_relu, reference.capped_relu)]
                yield Result(backend, "capped_relu", text, _same(*values))
                backwards = [
                    f(grad, values[1], cap, 1, [], True, False, None, None, None, zeroed)[0]
                    for f in (calls.capped_relu_backward, reference.capped_relu_backward)
                ]
                yield Result(backend, "capped_relu_backward", text, _same(*backwards))
            y, mask = expected[:2]
            for saved, order in ((y, []), (mask, composite.mask_order(y, cap))):
                arguments = (grad, saved, cap, 1, order, True, True, 0.1, weight)
                dx, *sums = calls.capped_relu_backward(*arguments, bias)
                dx_expected, *sums_expected = reference.capped_relu_backward(*arguments, bias)
                agrees = _same(dx, dx_expected) and all(map(_near, sums, sums_expected))
                yield Result(backend, "capped_relu_backward", text, agrees)
                tangents = [
                    f(grad, cap, saved, cap, 1, order) for f in (calls.capped_relu_jvp, reference.capped_relu_jvp)
                ]
                yield Result(backend, "capped_relu_jvp", text, _same(*tangents))
                through = [
                    f(grad, saved, cap, 1, order)
                    for f in (calls.capped_relu_surrogate_backward, reference.capped_relu_surrogate_backward)
                ]
                yield Result(backend, "capped_relu_surrogate_backward", text, _same(*through))
            soft = [
                f(grad, x, cap, 1, [], cap + 0.1)
                for f in (calls.capped_relu_surrogate_backward, reference.capped_relu_surrogate_backward)
            ]
            yield Result(backend, "capped_relu_surrogate_backward", f"{text}, soft", _near(*soft))
            counts = [f(x, cap, 1) for f in (calls.cap_saturation, reference.cap_saturation)]
            yield Result(backend, "cap_saturation", text, _same(*counts))
            in_place = x.clone()
            calls.capped_relu_(in_place, cap, 1)
            yield Result(backend, "capped_relu_", text, _same(in_place, y))
            overwritten = x.clone()
            extras = calls.capped_relu_with_aux_(overwritten, cap, 1, True, 0.1)
            agrees = _same((overwritten, extras[0]), (y, mask)) and _near(extras[1], expected[2])
            yield Result(backend, "capped_relu_with_aux_", text, agrees)
            penalties = [f([cap, cap], 0.1) for f in (calls.cap_penalty, reference.cap_penalty)]
            yield Result(backend, "cap_penalty", text, _near(*penalties))
            gradients = [
                f(weight, [cap, cap], 0.1) for f in (calls.cap_penalty_backward, reference.cap_penalty_backward)
            ]
            yield Result(backend, "cap_penalty_backward", text, all(map(_near, *gradients)))


def _inputs(dtype: torch.dtype, device: str, generator: torch.Generator) -> Iterator[tuple[str, Tensor, Tensor]]:
    name = str(dtype).removeprefix("torch.")
    x = torch.randn(3, 5, 7, 9, generator=generator, device="cpu")
    x.view(-1)[:: x.numel() // len(_SPECIAL_VALUES)][: len(_SPECIAL_VALUES)] = torch.tensor(
        _SPECIAL_VALUES, device="cpu"
    )
    x = x.to(device, dtype)
    formats = {
        "contiguous": x,
        "channels last": x.contiguous(memory_format=torch.channels_last),
        "sliced": x[:, :, 1:, ::2],
    }
    for layout, view in formats.items():
        shapes = {"layer": (1,), "channel": (5,), "neuron": tuple(view.shape[1:])}
        for granularity, shape in shapes.items():
            cap = torch.randn(shape, generator=generator, device="cpu").abs()
            yield f"{name}, {granularity} cap, {layout}", view, cap.to(device, dtype)
    yield f"{name}, float32 cap, contiguous", x, torch.rand(5, generator=generator, device="cpu").to(device)


def _same(got: Tensor | tuple[Tensor, ...], expected: Tensor | tuple[Tensor, ...]) -> bool:
    if isinstance(got, Tensor) and isinstance(expected, Tensor):
        if got.shape != expected.shape or got.dtype != expected.dtype or got.stride() != expected.stride():
            return False
        if not got.dtype.is_floating_point:
            return torch.equal(got, expected)
        # NaN payloads are free; the sign of zero is not.
        nan = got.isnan()
        got, expected = got.masked_fill(nan, 1), expected.masked_fill(expected.isnan(), 2).masked_fill(nan, 1)
        return torch.equal(got, expected) and torch.equal(got.signbit(), expected.signbit())
    return all(map(_same, got, expected))


def _near(got: Tensor, expected: Tensor) -> bool:
    try:
        torch.testing.assert_close(got, expected, equal_nan=True)
    except AssertionError:
        return False
    return True
