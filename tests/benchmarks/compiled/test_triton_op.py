"""The benchmark of traced kernels, as far as it goes without a GPU: plans, graphs, machine code, the command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks import report
from benchmarks.compiled import triton_op
from benchmarks.gpu.document import Gpu
from benchmarks.harness import machine as results
from benchmarks.harness.interleave import Budget, sample
from benchmarks.models.steps import cpu_place
from benchmarks.running import OUT_OF_TIME
from dreluop.backends import selection
from dreluop.backends.triton import plan, tuning, unavailable_reason
from tests.backends.triton.recorded import Launch, record
from tests.benchmarks.gpu.conftest import gpu as fake_gpu
from tests.build.machine_code import MISSING_TOOLS, has_tools, wide_accesses

pytest.importorskip("triton", reason="needs triton, not installed", exc_type=ImportError)
if unavailable_reason("cpu") is None:
    pytest.skip("in the interpreter, nothing is traced: run without TRITON_INTERPRET", allow_module_level=True)

gpu = fake_gpu
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
    from benchmarks.compiled import traced  # noqa: PLC0415 (imports triton)

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
    from benchmarks.compiled import traced  # noqa: PLC0415 (imports triton)

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


@pytest.fixture
def on_the_cpu(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command with the CPU in the part of the GPU, where no Triton kernel can serve."""
    assert gpu
    monkeypatch.setattr(triton_op, "served_by_cuda", lambda parser: None)
    monkeypatch.setattr(triton_op, "cuda_platform", lambda: replace(cpu_place(), sampler=sample))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(triton_op, "COMPILER", "eager")
    monkeypatch.setattr(
        triton_op, "BUDGET", Budget(seconds=0, min_samples=3, max_samples=3, warmup=1, sample_seconds=0)
    )
    some = [replace(CASE, between=name) for name in (triton_op.ALONE, triton_op.POINTWISE, triton_op.LINEAR)]
    monkeypatch.setattr(triton_op, "cases", lambda: [*some, replace(CASE, graphs=True, dtype=torch.bfloat16)])


@pytest.mark.usefixtures("on_the_cpu")
def test_what_fails_is_named_and_the_others_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert triton_op.main(["--out", str(tmp_path)]) == 0
    document = json.loads((tmp_path / triton_op.FILE_NAME).read_text())
    assert document["complete"] and document["missing"] == [] and document["device"]["name"] == "Some GPU 80GB"
    cases = triton_op.cases()
    failed = [(failure["case"], failure["implementation"]) for failure in document["failures"]]
    assert failed == [(case.label, name) for case in cases for name in ("opaque, Triton", triton_op.TRACED)]
    kinds = [failure["reason"].split(":")[0] for failure in document["failures"]]
    assert kinds == ["Unsupported", "RuntimeError"] * len(cases)
    measured = [(row["between"], row["dtype"], row["graphs"], row["implementation"]) for row in document["rows"]]
    who = ("opaque, native", triton_op.FUSED)
    assert measured == [(case.between, case.dtype_name, case.graphs, name) for case in cases for name in who]
    for row in document["rows"]:
        for times in (row, row["device"]):
            assert 0 < times["min_ms"] <= times["q1_ms"] <= times["ms"] <= times["q3_ms"]
            assert times["samples"] == 3
    printed = capsys.readouterr().out
    first = document["rows"][0]
    cell = f"{first['ms'] * 1e3:.1f} / {first['device']['ms'] * 1e3:.1f}"
    assert f"| 12 KB | fp32 | alone | - | - | - | {cell} |" in printed
    assert "Some GPU 80GB, driver 580.1; " in printed and "8 implementations not measured" in printed


@pytest.mark.usefixtures("on_the_cpu")
def test_what_does_not_fit_is_left_out_by_name(tmp_path: Path) -> None:
    assert triton_op.main(["--out", str(tmp_path), "--limit", "0.001"]) == OUT_OF_TIME
    assert not (tmp_path / triton_op.FILE_NAME).exists()


@pytest.mark.usefixtures("on_the_cpu")
def test_a_run_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = triton_op.cases()
    options = ["--implementations", triton_op.FUSED, "--out", str(tmp_path)]
    with monkeypatch.context() as patched:
        patched.setattr(triton_op, "cases", lambda: cases[:2])
        assert triton_op.main(options) == 0
    path = tmp_path / triton_op.FILE_NAME
    former = json.loads(path.read_text())
    assert triton_op.main([*options, "--resume", str(path)]) == 0
    document = json.loads(path.read_text())
    assert document["complete"] and len(document["rows"]) == 4 and document["rows"][:2] == former["rows"]
    assert [run["cases"] for run in document["earlier"]] == [[case.label for case in cases[:2]]]
    assert "in several runs: 2 cases on " in capsys.readouterr().out


@pytest.mark.usefixtures("on_the_cpu")
def test_wrong_values_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_op, "_ours", lambda x, cap: x.relu())
    rows, failures = triton_op.run_case(CASE, (triton_op.FUSED,), triton_op.cuda_platform())
    assert rows == []
    assert [failure["reason"].split(":")[0] for failure in failures] == ["AssertionError"]


def test_every_size_and_neighbor_is_measured() -> None:
    found = triton_op.cases()
    assert len(set(found)) == len(found)
    for dtype in (torch.bfloat16, torch.float32):
        sizes = {case.x_bytes for case in found if case.dtype == dtype}
        assert sizes == {64 * 512 * dtype.itemsize, triton_op.MIDDLE, triton_op.LARGE}


def test_wrong_arguments(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for given, message in ((["--limit", "0"], "--limit: got 0.0"), ([], "torch sees no CUDA device")):
        with pytest.raises(SystemExit, match="2"):
            triton_op.main(given)
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("ms", "more", "cell"),
    [
        (0.05, {}, "50.0 / 3.0"),
        # Five such calls take longer than half the head start of a millisecond that the first files had.
        (0.15, {}, "150.0 / -"),
        (0.15, {"head_start_cycles": 20 * triton_op.CYCLES_PER_MS}, "150.0 / 3.0"),
        (2.5, {"head_start_cycles": 20 * triton_op.CYCLES_PER_MS}, "2500.0 / -"),
    ],
)
def test_where_the_host_may_not_have_been_ahead_its_time_is_not_taken_for_the_gpus(
    ms: float, more: dict[str, Any], cell: str, tmp_path: Path, gpu: Gpu
) -> None:
    row = {
        "shape": [64, 512], "dtype": "float32", "x_bytes": 2**17, "between": triton_op.ALONE, "graphs": False,
        "implementation": "opaque, Triton", "ms": ms, "device": {"ms": 0.003}, **more,
    }  # fmt: skip
    document = {**triton_op.new_document(), "rows": [row]}
    assert cell in triton_op.table(document).rows[0]
    results.save(document, tmp_path / "gpu" / triton_op.FILE_NAME)
    assert f"| {cell} |" in report.traced(tmp_path)
