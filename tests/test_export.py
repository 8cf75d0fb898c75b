"""Programs of torch.export and packages of AOTInductor, saved and loaded, with dreluop and without; TorchScript."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

import dreluop
from dreluop import DReLU, LazyDReLU, SReLU

# The functions of torch that run in another process stand here as text, so that it can do without dreluop.
LOADERS = {
    "program": "lambda path: torch.export.load(path).module()",
    "package": "torch._inductor.aoti_load_package",
}
IN_ANOTHER_PROCESS = """
import sys, torch
path, loader, data, imports = sys.argv[1:]
if imports:
    __import__(imports)
model = eval(loader)(path)
x, y = torch.load(data)
assert torch.equal(model(x), y), (model(x) - y).abs().max()
assert bool(imports) == ("dreluop" in sys.modules)
"""


class Network(nn.Module):
    """Every granularity and way to call the activation; no operation whose sums another compiler would reorder."""

    def __init__(self) -> None:
        super().__init__()
        self.channel = DReLU(3, init=1.5, inplace=True)
        self.last = DReLU(5, init=1.2, dim=-1, save="code")
        self.neuron = DReLU((3, 5), init=1.0)
        self.layer = DReLU(init=0.8)
        self.fixed = SReLU(0.7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.channel(x * 3)
        x = self.last(x - 0.1, x, bias=self.last.cap)
        return self.fixed(self.layer(self.neuron(x * 0.5) - 0.2))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    model = Network().eval()
    for parameter in model.parameters():
        parameter.data.mul_(torch.rand_like(parameter) + 0.5)
    return model.requires_grad_(False)


def exported(model: nn.Module, strict: bool = False) -> ExportedProgram:
    batch = torch.export.Dim("batch")
    return torch.export.export(model, (torch.randn(4, 3, 5),), dynamic_shapes=({0: batch},), strict=strict)


def without_dreluop(program: ExportedProgram) -> ExportedProgram:
    return program.run_decompositions({**torch.export.default_decompositions(), **dreluop.ops.decompositions()})


@pytest.fixture(scope="module", params=["operators", "decomposed"])
def program(request: pytest.FixtureRequest, model: nn.Module) -> ExportedProgram:
    made = exported(model)
    return made if request.param == "operators" else without_dreluop(made)


def holds_operators(program: ExportedProgram) -> bool:
    return any("dreluop" in str(node.target) for node in program.graph.nodes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("export")


def loaded_elsewhere(path: Path, kind: str, model: nn.Module, imports: str) -> subprocess.CompletedProcess[str]:
    """A run that loads the file in a process with or without dreluop, and compares."""
    x = torch.randn(7, 3, 5)
    data = path.with_suffix(".data")
    torch.save((x, model(x)), data)
    return subprocess.run(
        [sys.executable, "-c", IN_ANOTHER_PROCESS, str(path), LOADERS[kind], str(data), imports],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
    )


@pytest.mark.parametrize("strict", [False, True], ids=["", "strict"])
def test_any_batch_size(model: nn.Module, strict: bool) -> None:
    program = exported(model, strict)
    assert holds_operators(program) and not holds_operators(without_dreluop(program))
    for one in (program, without_dreluop(program)):
        for batch in (1, 4, 9):
            x = torch.randn(batch, 3, 5)
            assert torch.equal(one.module()(x), model(x))


def test_a_saved_program_needs_dreluop_only_for_its_operators(
    model: nn.Module, program: ExportedProgram, folder: Path
) -> None:
    path = folder / "program.pt2"
    torch.export.save(program, path)
    done = loaded_elsewhere(path, "program", model, "dreluop")
    assert done.returncode == 0, done.stderr
    done = loaded_elsewhere(path, "program", model, "")
    assert (done.returncode == 0) != holds_operators(program), done.stderr
    assert ("dreluop" in done.stderr) == holds_operators(program)


@pytest.fixture(scope="module")
def package(program: ExportedProgram, folder: Path) -> Iterator[Path]:
    """A compiled package: takes ten seconds to make."""
    if shutil.which("g++") is None:
        pytest.skip("AOTInductor needs a C++ compiler, and there is no g++")
    path = folder / f"package-{holds_operators(program)}.pt2"
    torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    yield path
    torch.compiler.reset()


def test_a_package_of_aotinductor(model: nn.Module, program: ExportedProgram, package: Path) -> None:
    run = torch._inductor.aoti_load_package(str(package))
    for batch in (1, 4, 9):
        x = torch.randn(batch, 3, 5)
        assert torch.equal(run(x), model(x))
    done = loaded_elsewhere(package, "package", model, "dreluop")
    assert done.returncode == 0, done.stderr
    done = loaded_elsewhere(package, "package", model, "")
    assert (done.returncode == 0) != holds_operators(program), done.stderr
    assert ("Could not find schema for dreluop::" in done.stderr) == holds_operators(program)


def test_importing_dreluop_imports_no_exporter() -> None:
    code = "import sys, dreluop; print([name for name in sys.argv[1:] if name in sys.modules])"
    exporters = ["onnx", "onnx_ir", "onnxscript", "onnxruntime", "torch._inductor", "torch._dynamo", "torch.onnx"]
    command = [sys.executable, "-c", code, *exporters]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.mark.parametrize("module", [DReLU(3), SReLU(1.0)], ids=lambda module: type(module).__name__)
def test_torchscript_is_refused(module: nn.Module) -> None:
    name = type(module).__name__
    with pytest.raises(TypeError, match=f"torch.jit.script: got a {name}, which it cannot compile; use torch.export"):
        torch.jit.script(nn.Sequential(nn.Linear(3, 3), module))


def test_torchscript_of_the_function_is_refused() -> None:
    with pytest.raises(torch.jit.frontend.NotSupportedError):
        torch.jit.script(dreluop.capped_relu)
    with pytest.raises(RuntimeError, match="uninitialized parameters cap"):
        torch.jit.script(LazyDReLU())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_torchscript_trace_of_a_trained_cap_fails(tmp_path: Path) -> None:
    model, x = nn.Sequential(nn.Linear(5, 3), DReLU(3)), torch.randn(4, 5)
    with pytest.raises(torch.jit.TracingCheckError, match="Graphs differed across invocations"):
        torch.jit.trace(model, (x,))
    traced = torch.jit.trace(model, (x,), check_trace=False)
    with pytest.raises(RuntimeError, match="Could not export Python function call 'PlainCappedReLUFunction'"):
        traced.save(str(tmp_path / "trace.pt"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_torchscript_trace_without_gradients_holds_the_operator(tmp_path: Path) -> None:
    model, x = nn.Sequential(nn.Linear(5, 3), DReLU(3, init=0.5)), torch.randn(4, 5)
    with torch.no_grad():
        torch.jit.trace(model, (x,)).save(str(tmp_path / "trace.pt"))
    assert torch.equal(torch.jit.load(str(tmp_path / "trace.pt"))(x), model(x))
