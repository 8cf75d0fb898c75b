"""Calibration at its edges: half precision, infinities, shared caps, models in which nothing can be measured."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from dreluop import DReLU
from dreluop.surgery import calibrate_caps, cap_summary, insert_head, insert_stem, replace_activations, set_caps


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_caps_are_rounded_once_and_reported_as_they_are(dtype: torch.dtype) -> None:
    layer = DReLU(3, dtype=dtype)
    x = torch.tensor([[1.0009, 2.003, 3.007]]).expand(4, 3)
    (row,) = calibrate_caps(nn.Sequential(layer), [x], 1.0).layers
    assert torch.equal(layer.cap.detach(), x[0].to(dtype))
    assert (row.cap_min, row.cap_max) == (layer.cap.min().item(), layer.cap.max().item())
    # What the rounded caps cap, not what the quantiles would.
    assert row.capped == pytest.approx((x >= layer.cap.float()).float().mean().item())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_inputs(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(4, 3), DReLU(3)).to(dtype)
    x = torch.randn(50, 4).to(dtype)
    calibrate_caps(model, x.split(7), 1.0)
    assert torch.equal(model[1].cap.detach(), model[0](x).amax(0).detach())


def test_what_the_dtype_cannot_hold_is_refused_and_nothing_set() -> None:
    model = nn.Sequential(DReLU(2), DReLU(2, dtype=torch.float16))
    x = torch.full((4, 2), 1e5)
    set_caps(model, {"0": torch.inf})
    with pytest.raises(ValueError, match=r"the 0.99 quantile of '1': got 100000, which torch.float16 rounds to inf"):
        calibrate_caps(model, [x])
    with pytest.raises(ValueError, match=r"floor of '1': got 1e-09, which torch.float16 rounds to 0"):
        calibrate_caps(model, [x], floor=1e-9)
    with pytest.raises(ValueError, match=r"value of '1': got 1e-09, which torch.float16 rounds to 0"):
        set_caps(model, 1e-9)
    assert model[0].cap.tolist() == [torch.inf] * 2
    assert model[1].cap.tolist() == [100, 100]
    half = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(3, 3)).half()
    before = repr(half)
    for change in (replace_activations, insert_head, insert_stem):
        with pytest.raises(ValueError, match=r"init.*: got 1e\+06, which torch.float16 rounds to inf"):
            change(half, init=1e6)
    assert repr(half) == before


def test_minus_infinity_is_off() -> None:
    layer = DReLU(2)
    x = torch.arange(1.0, 102).unsqueeze(1).repeat(1, 2)
    x[:51, 1] = -torch.inf
    calibrate_caps(nn.Sequential(layer), [x], 0.9)
    assert layer.cap.tolist() == [91, 91]
    calibrate_caps(nn.Sequential(layer), [x], 0.501)
    assert layer.cap[1] == layer.cap[0]  # between -inf and 52: dead, so the median of the others


def test_layers_that_share_caps_get_the_quantile_of_both() -> None:
    first, second = DReLU(1), DReLU(1)
    second.cap = first.cap
    model = nn.Sequential(first, second)
    set_caps(model, 1000.0)
    both = nn.ModuleList([model, nn.Identity()])
    result = calibrate_caps(
        both, [torch.full((5, 1), 3.0), torch.full((5, 1), 9.0)], 1.0,
        forward=lambda model, x: (first(x), second(x - 2)), progress=False,
    )  # fmt: skip
    assert first.cap is second.cap
    assert first.cap.item() == 9
    assert len(result.layers) == 2
    with pytest.raises(ValueError, match=r"value of '0.1': got another than for '0.0', which shares its caps"):
        set_caps(both, {"0.0": 1.0, "0.1": 2.0})
    set_caps(both, {"0.0": 1.0, "0.1": torch.ones(1)})
    assert first.cap.item() == 1


def test_a_batch_that_fails_leaves_modes_hooks_and_caps() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), DReLU(3)).train()

    def batches() -> Any:
        yield torch.randn(4, 3)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        calibrate_caps(model, batches())
    assert model.training
    assert model[1].cap.tolist() == [100] * 3
    assert not model[1]._forward_pre_hooks


EMPTY = "its DReLU '0' got only empty inputs: no batch of the loader had a sample for it"


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (DReLU(3), (0, 3)),
        (DReLU(3), (2, 3, 0, 4)),
        (DReLU(3, dim=0), (3, 0)),
        (DReLU(), (0,)),
        (DReLU((2, 3)), (0, 2, 3)),
    ],
    ids=str,
)
def test_batches_without_samples_say_so(layer: DReLU, shape: tuple[int, ...]) -> None:
    model = nn.Sequential(layer)
    with pytest.raises(ValueError, match=EMPTY):
        calibrate_caps(model, [torch.ones(shape), torch.ones(shape)])
    assert calibrate_caps(model, [torch.ones(shape)], unreached="keep").unreached == ("0",)
    assert layer.cap.unique().tolist() == [100]


def test_an_empty_batch_among_others_counts_for_nothing() -> None:
    x = torch.rand(10, 3)
    layer = DReLU(3)
    calibrate_caps(nn.Sequential(layer), [x[:0], x[:4], x[4:4], x[4:]], 1.0, progress=False)
    assert torch.equal(layer.cap.detach(), x.amax(0))


SHAPES: dict[str, tuple[DReLU, torch.Tensor, torch.Tensor]] = {
    "vector by elements": (DReLU(3, dim=0), torch.tensor([1.0, 3, 2]), torch.tensor([1.0, 3, 2])),
    "vector, last": (DReLU(3, dim=-1), torch.tensor([1.0, 3, 2]), torch.tensor([1.0, 3, 2])),
    "vector, one cap": (DReLU(), torch.tensor([1.0, 3, 2]), torch.tensor([3.0])),
    "number": (DReLU(), torch.tensor(2.5), torch.tensor([2.5])),
    "rows": (DReLU(2, dim=0), torch.tensor([[1.0, 3], [5, 2]]), torch.tensor([3.0, 5])),
    "one sample, neurons": (
        DReLU((2, 2)), torch.tensor([[[1.0, 3], [5, 2]]]), torch.tensor([[1.0, 3], [5, 2]])
    ),
    "channels last": (
        DReLU(2), torch.arange(1.0, 17).view(1, 2, 4, 2).contiguous(memory_format=torch.channels_last),
        torch.tensor([8.0, 16]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_calibration_and_summary_of_unusual_shapes(name: str) -> None:
    layer, x, want = SHAPES[name]
    model = nn.Sequential(layer)
    calibrate_caps(model, [x], 1.0, progress=False)
    assert torch.equal(layer.cap.detach(), want)
    (row,) = cap_summary(model, [x], progress=False).layers
    broadcast = want.view(-1, 1) if layer.dim == 0 and x.ndim == 2 else want.view(-1, 1, 1) if x.ndim == 4 else want
    assert row.capped == pytest.approx((x >= broadcast).double().mean().item())
    assert row.off + row.inside + row.capped == pytest.approx(1)


def test_the_deviation_of_single_elements_is_zero() -> None:
    (row,) = cap_summary(nn.Sequential(DReLU(3, dim=0)), [torch.tensor([1.0, 2, 3])], progress=False).layers
    assert row.cap_over_std == torch.inf
    batches = [torch.tensor([1.0, 2, 3]), torch.tensor([3.0, 6, 9])]
    (row,) = cap_summary(nn.Sequential(DReLU(3, dim=0)), batches, progress=False).layers
    # The deviations over the two calls are 1, 2 and 3; those of all six elements together would be 2.6.
    assert row.cap_over_std == pytest.approx(50)


def test_compiled_models_are_refused() -> None:
    inner = nn.Sequential(nn.Linear(3, 3), DReLU(3))
    compiled = torch.compile(inner, backend="eager")
    for model in (compiled, nn.Sequential(compiled)):
        for measure in (calibrate_caps, cap_summary):
            with pytest.raises(ValueError, match="model: got a compiled module, in which nothing can be measured"):
                measure(model, [torch.ones(2, 3)])


def test_data_parallel_on_several_devices_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.DataParallel(nn.Sequential(DReLU(3)))
    calibrate_caps(model, [torch.ones(2, 3)])
    assert model.module[0].cap.tolist() == [1] * 3
    monkeypatch.setattr(model, "device_ids", [0, 1])
    with pytest.raises(ValueError, match="model: got a DataParallel on several devices"):
        calibrate_caps(model, [torch.ones(2, 3)])
