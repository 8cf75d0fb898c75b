"""The benchmark of traced kernels, as far as it goes without a GPU: plans, graphs, machine code, the command."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks import bench_triton_op as triton_op
from benchmarks.harness import cli, machine
from benchmarks.harness.cli import Run, main
from benchmarks.harness.machine import Gpu, Platform
from benchmarks.harness.records import Record, load
from dreluop.backends import selection
from dreluop.backends.triton import plan, tuning, unavailable_reason
from tests.backends.triton.recorded import Launch, record
from tests.benchmarks.conftest import BUDGET, Processor
from tests.build.machine_code import MISSING_TOOLS, has_tools, wide_accesses
from tools import report

pytest.importorskip("triton", reason="needs triton, not installed", exc_type=ImportError)
if unavailable_reason("cpu") is None:
    pytest.skip("in the interpreter, nothing is traced: run without TRITON_INTERPRET", allow_module_level=True)

SHAPES = ((64, 512), (33, 100), (8, 16, 7, 7), (1000, 3))
CASE = triton_op.Case(6, torch.float32, triton_op.POINTWISE, False)


@pytest.fixture(autouse=True)
def planned_as_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(tuning._chosen, "cpu", plan.Tuning())
    yield
    torch._dynamo.reset()


def arguments(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.zeros(shape, dtype=dtype), torch.ones(shape[1])


def launched(x: Tensor, cap: Tensor) -> Launch:
    """As the traced operator launches it."""
    from benchmarks import traced_forward as traced  # noqa: PLC0415 (imports triton)

    of = traced.planned(x, cap)
    constants = {"TILE": of.tile, "VEC": of.vec, "MODE": of.mode, "WIDE": of.wide}
    given = (x, torch.empty_like(x), cap, of.numel, of.full, of.inner, of.caps, of.cap_stride)
    return Launch(traced.few_arguments, of.programs, given, {**constants, "num_warps": of.warps})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_plan_is_the_operators(shape: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    x, cap = arguments(shape, dtype)
    mine = launched(x, cap)
    (own,) = record(monkeypatch, lambda operators: operators["capped_relu"](x, cap, 1))
    assert mine.programs == own.programs
    assert mine.arguments[3:] == own.arguments[6:11]
    assert mine.options == {key: own.options[key] for key in mine.options}
    # What the kernel of few arguments does not pass on.
    assert own.arguments[2] is own.arguments[4] is own.arguments[5] is None
    assert own.arguments[12:16] == ((), (), (), ())
    assert (own.options["BIAS_MODE"], own.options["PENALTY_PROGRAMS"], own.options["PENALTY_TILE"]) == (0, 0, 1024)


def test_what_cannot_be_planned() -> None:
    from benchmarks import traced_forward as traced  # noqa: PLC0415 (imports triton)

    with pytest.raises(ValueError, match=r"x: got strides \(20, 2\) for shape \(4, 10\); expected a dense tensor"):
        traced.planned(torch.zeros(4, 20)[:, ::2], torch.ones(10))
    with pytest.raises(ValueError, match=r"cap: got shape \(\); expected \(channels,\)"):
        traced.planned(torch.zeros(4, 20), torch.ones(()))


@pytest.mark.skipif(not has_tools(), reason=MISSING_TOOLS)
def test_it_compiles_for_the_gpu_with_wide_accesses() -> None:
    x, cap = arguments((4096, 512), torch.bfloat16)
    code = launched(x, cap).machine_code("sm_90").code
    assert wide_accesses(code, "LDG") and wide_accesses(code, "STG")


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tells what the analysis of a traced kernel asks; launches nothing."""
    from triton.backends.compiler import GPUTarget  # noqa: PLC0415
    from triton.runtime import driver  # noqa: PLC0415

    shown = SimpleNamespace(get_current_target=lambda: GPUTarget("cuda", 90, 32))
    monkeypatch.setattr(driver, "_active", shown)


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize("implementation", triton_op.IMPLEMENTATIONS)
def test_what_the_compiler_sees(implementation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.backends.common import aot_autograd  # noqa: PLC0415 (imports triton)

    seen: list[torch.fx.Node] = []

    def keep(graph: torch.fx.GraphModule, _: object) -> Any:
        seen.extend(node for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    monkeypatch.setattr(selection, "unavailable_reason", lambda backend, device_type: None)
    function = triton_op.activation(implementation, *arguments((64, 512), torch.float32))
    between = triton_op.network(triton_op.POINTWISE, function, (torch.ones(()), torch.ones(())))
    with FakeTensorMode(), triton_op.chosen(implementation):
        x, cap = torch.empty(64, 512, device="cuda"), torch.empty(512, device="cuda")
        compiled = torch.compile(between, dynamic=False, fullgraph=True, backend=aot_autograd(fw_compiler=keep))
        assert compiled(x, cap).shape == x.shape
    names = [str(node.target) for node in seen]
    ours = [name for name in names if "dreluop" in name]
    if implementation in triton_op.OPAQUE:
        # Native is the default.
        assert ours == [f"dreluop.capped_relu.{'triton' if implementation == 'opaque, Triton' else 'default'}"]
        return
    assert ours == []
    if implementation == triton_op.FUSED:
        return
    (kernel,) = (node for node in seen if str(node.target) == "triton_kernel_wrapper_functional")
    assert kernel.kwargs["tensors_to_clone"] == ["y"], "y alone is written"
    assert kernel.kwargs["grid"] == [(32, 1, 1)]


SOME = [
    *(replace(CASE, between=name) for name in (triton_op.ALONE, triton_op.POINTWISE, triton_op.LINEAR)),
    replace(CASE, graphs=True, dtype=torch.bfloat16),
]
BENCH = replace(triton_op.BENCH, cases=lambda kind, settings: SOME)


@pytest.fixture
def on_the_cpu(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command with the CPU in the part of the GPU, where no Triton kernel can run."""
    assert gpu
    monkeypatch.setattr(machine, "require_native", lambda parser, device: "native")
    monkeypatch.setattr(cli, "platform_of", lambda device: Processor())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(triton_op, "COMPILER", "eager")
    monkeypatch.setattr(triton_op, "BUDGET", BUDGET)


@pytest.mark.usefixtures("on_the_cpu")
def test_what_fails_is_named_and_the_others_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(BENCH, ["--threads", "1", "--out", str(tmp_path)]) == 0
    record = load(tmp_path / "triton-op.jsonl")
    assert record.run["device"]["name"] == "Some H100 80GB HBM3" and record.missing(SOME) == []
    failed = [(one["key"]["case"], one["key"]["implementation"]) for one in record.failures]
    assert failed == [(case.label, name) for case in SOME for name in ("opaque, Triton", triton_op.TRACED)]
    kinds = [one["failure"].split(":")[0] for one in record.failures]
    assert kinds == ["Unsupported", "RuntimeError"] * len(SOME)
    measured = [(row["between"], row["dtype"], row["graphs"], row["key"]["implementation"]) for row in record.rows]
    who = ("opaque, native", triton_op.FUSED)
    assert measured == [(case.between, case.dtype_name, case.graphs, name) for case in SOME for name in who]
    for row in record.rows:
        for kind in ("", "device_"):
            times = [row[f"{kind}{name}"] for name in ("min_ms", "q1_ms", "ms", "q3_ms")]
            assert times[0] > 0 and times == sorted(times) and row[f"{kind}samples"] == 3
    (table,) = triton_op.tables(record)
    first = record.rows[0]
    cell = f"{first['ms'] * 1e3:.1f} / {first['device_ms'] * 1e3:.1f}"
    assert table.rows[0][:7] == ("12 KB", "fp32", "alone", "-", "-", "-", cell)
    printed = capsys.readouterr().out
    assert "Some H100 80GB HBM3, driver 580.1; " in printed and "8 implementations not measured" in printed


@pytest.mark.usefixtures("on_the_cpu")
def test_wrong_values_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_op, "activation", lambda name, x, cap: lambda x, cap: x.relu())
    (row,) = triton_op.run(replace(CASE, implementations=(triton_op.FUSED,)), Run(Processor()))
    assert row["failure"].startswith("AssertionError: ")


def test_every_size_and_neighbor_is_measured() -> None:
    found = triton_op.cases("cuda", {})
    assert len(set(found)) == len(found)
    for dtype in (torch.bfloat16, torch.float32):
        sizes = {case.x_bytes for case in found if case.dtype == dtype}
        assert sizes == {64 * 512 * dtype.itemsize, triton_op.MIDDLE, triton_op.LARGE}


def record_of(ms: float, cycles: int) -> Record:
    row = {
        "shape": [64, 512], "dtype": "float32", "x_bytes": 2**17, "between": triton_op.ALONE, "graphs": False,
        "implementation": "opaque, Triton", "ms": ms, "device_ms": 0.003, "head_start_cycles": cycles,
    }  # fmt: skip
    made = triton_op.BENCH.new_record(Platform())
    made.add("64 x 512, fp32, alone", [row], triton_op.BENCH.key)
    return made


@pytest.mark.parametrize(
    ("ms", "cycles", "cell"),
    [
        (0.05, triton_op.CYCLES_PER_MS, "50.0 / 3.0"),
        # Five such calls take longer than half the head start of a millisecond.
        (0.15, triton_op.CYCLES_PER_MS, "150.0 / -"),
        (0.15, 20 * triton_op.CYCLES_PER_MS, "150.0 / 3.0"),
        (2.5, 20 * triton_op.CYCLES_PER_MS, "2500.0 / -"),
    ],
)
@pytest.mark.usefixtures("gpu")
def test_where_the_host_may_not_have_been_ahead_its_time_is_not_taken_for_the_gpus(
    ms: float, cycles: int, cell: str, tmp_path: Path
) -> None:
    record = record_of(ms, cycles)
    assert cell in triton_op.tables(record)[0].rows[0]
    record.save(tmp_path / "gpu" / triton_op.BENCH.file_name)
    assert f"| {cell} |" in report.REPORTS["traced"](tmp_path)
