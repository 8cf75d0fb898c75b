"""Programs of torch.export and packages of AOTInductor, saved and loaded, with dreluop and without; TorchScript."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

import dreluop
from dreluop import DReLU, LazyDReLU, SReLU
from tests.support import fresh_python

# As text, so that it can do without dreluop.
IN_ANOTHER_PROCESS = """
import sys, torch
folder, imports = sys.argv[1:]
if imports:
    __import__(imports)
x, y = torch.load(folder + "/data.pt")
loaders = {"program": lambda path: torch.export.load(path).module(), "package": torch._inductor.aoti_load_package}
for name, load in loaders.items():
    try:
        assert torch.equal(load(f"{folder}/{name}.pt2")(x), y)
        print(name, "equal")
    except RuntimeError as error:
        print(name, error)
assert bool(imports) == ("dreluop" in sys.modules)
"""


class Network(nn.Module):
    """Every granularity and way to call the activation; no operation whose sums another compiler would reorder."""

    def __init__(self) -> None:
        super().__init__()
        self.channel = DReLU(3, init=1.5, inplace=True)
        self.last = DReLU(5, init=1.2, dim=-1, save="mask")
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


def holds_operators(program: ExportedProgram) -> bool:
    return any("dreluop" in str(node.target) for node in program.graph.nodes)


@pytest.mark.parametrize("strict", [False, True], ids=["", "strict"])
def test_any_batch_size(model: nn.Module, strict: bool) -> None:
    program = exported(model, strict)
    assert holds_operators(program) and not holds_operators(without_dreluop(program))
    for one in (program, without_dreluop(program)):
        for batch in (1, 4, 9):
            x = torch.randn(batch, 3, 5)
            assert torch.equal(one.module()(x), model(x))


@pytest.fixture(scope="module", params=["operators", "decomposed"])
def saved(
    request: pytest.FixtureRequest, model: nn.Module, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Path]]:
    """A saved program, a compiled package of it, which takes ten seconds to make, and data, in a folder."""
    if shutil.which("g++") is None:
        pytest.skip("AOTInductor needs a C++ compiler, and there is no g++")
    folder = tmp_path_factory.mktemp("export")
    program = exported(model) if request.param == "operators" else without_dreluop(exported(model))
    torch.export.save(program, folder / "program.pt2")
    torch._inductor.aoti_compile_and_package(program, package_path=str(folder / "package.pt2"))
    x = torch.randn(7, 3, 5)
    torch.save((x, model(x)), folder / "data.pt")
    yield request.param, folder
    torch.compiler.reset()


def loaded_in_another_process(folder: Path, imports: str) -> str:
    done = fresh_python.run(IN_ANOTHER_PROCESS, str(folder), imports)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_saved_programs_and_packages_run(model: nn.Module, saved: tuple[str, Path]) -> None:
    kind, folder = saved
    program = torch.export.load(folder / "program.pt2").module()
    package = torch._inductor.aoti_load_package(str(folder / "package.pt2"))
    for batch in (1, 4, 9):
        x = torch.randn(batch, 3, 5)
        assert torch.equal(program(x), model(x))
        assert torch.equal(package(x), model(x))
    if kind == "operators":
        assert loaded_in_another_process(folder, "dreluop") == "program equal\npackage equal\n"
        program_error, package_error = loaded_in_another_process(folder, "").split("package ")
        assert "error when deserializing" in program_error
        assert "Could not find schema for dreluop::" in package_error
    else:
        assert loaded_in_another_process(folder, "") == "program equal\npackage equal\n"


def test_the_example_of_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guide = Path(__file__).parents[2] / "docs" / "export.md"
    (code,) = re.findall(r"```python\n(.*?)```", guide.read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(code, str(guide), "exec"), names)
    x = torch.randn(5, 16)
    want = names["model"](x)
    torch.testing.assert_close(names["compiled"](x), want)
    torch.testing.assert_close(names["onnx_program"](x)[0], want)
    assert (tmp_path / "model.onnx").is_file()


def test_importing_dreluop_imports_no_exporter() -> None:
    code = "import sys, dreluop; print([name for name in sys.argv[1:] if name in sys.modules])"
    exporters = ["onnx", "onnx_ir", "onnxscript", "onnxruntime", "torch._inductor", "torch._dynamo", "torch.onnx"]
    command = [sys.executable, "-c", code, *exporters]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.mark.parametrize("module", [DReLU(3), SReLU(1.0), LazyDReLU()], ids=lambda module: type(module).__name__)
def test_torchscript_is_refused(module: nn.Module) -> None:
    name = type(module).__name__
    with pytest.raises(TypeError, match=f"torch.jit.script: got a {name}, which it cannot compile; use torch.export"):
        torch.jit.script(nn.Sequential(nn.Linear(3, 3), module))


def test_torchscript_of_the_function_is_refused() -> None:
    with pytest.raises(torch.jit.frontend.NotSupportedError):
        torch.jit.script(dreluop.capped_relu)
