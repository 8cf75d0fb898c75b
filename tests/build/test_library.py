"""The compiled operators as a file: what they ask of the machine, and which instructions they hold."""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
import torch

from dreluop.backends import native
from dreluop.ops import schemas
from tools.wheels import symbols

pytestmark = pytest.mark.skipif(shutil.which("nm") is None or shutil.which("objdump") is None, reason="needs binutils")


@pytest.fixture(params=["in place", "in the wheel"])
def library(request: pytest.FixtureRequest) -> Path:
    if request.param == "in the wheel":
        unpacked: Path = request.getfixturevalue("unpacked")
        return unpacked / "dreluop" / native.LIBRARY.name
    if not native.LIBRARY.exists():
        pytest.skip(f"{native.LIBRARY} is not built")
    return native.LIBRARY


def output_of(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_only_the_c_shim_of_torch_is_needed(library):
    names = symbols.needed(library)
    assert any(name.startswith("aoti_torch_") for name in names)
    assert [name for name in names if not name.startswith(("aoti_torch_", "torch_"))] == []


def test_the_installed_torch_has_all_that_is_needed(library):
    has = symbols.exported((Path(torch.__file__).parent / "lib").glob("*.so*"))
    assert [name for name in symbols.needed(library) if name not in has] == []


def test_what_torch_has_since_2_13_is_weak(library):
    names = output_of("nm", "-D", "--undefined-only", library)
    assert re.findall(r" ([Uw]) torch_exception_\S*", names) == ["w"]


def test_what_only_a_cuda_torch_has_is_weak(library):
    names = output_of("nm", "-D", "--undefined-only", library)
    assert re.findall(r" ([Uw]) \S*cuda\S*stream", names) in ([], ["w"])
    assert not re.findall(r" U (\S*cuda\S*)", names)


def test_no_library_of_a_torch_version_and_no_place_to_search(library):
    dump = output_of("objdump", "-p", library)
    needed = re.findall(r"NEEDED\s+(\S+)", dump)
    assert "libtorch.so" in needed
    assert not [name for name in needed if re.match(r"libpython|libc10|libtorch_|libcudart", name)]
    assert not re.findall(r"R(?:UN)?PATH\s+(\S+)", dump)


def test_the_wheel_holds_no_path_of_the_machine_that_built_it(unpacked):
    libraries = list(unpacked.rglob("*.so"))
    assert len(libraries) == 3
    for one in libraries:
        assert symbols.build_paths(one) == []
        assert not re.findall(r"R(?:UN)?PATH\s+(\S+)", output_of("objdump", "-p", one))


@pytest.fixture(params=["in place", "in the wheel"])
def autograd_library(request: pytest.FixtureRequest) -> Path:
    in_the_wheel = request.param == "in the wheel"
    folder: Path = request.getfixturevalue("unpacked") / "dreluop" if in_the_wheel else native.LIBRARY.parent
    found = folder / f"_autograd{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not in_the_wheel and not found.exists():
        pytest.skip(f"{found} is not built")
    return found


def test_the_library_for_one_torch_shows_nothing_of_itself_and_finds_torch_loaded(autograd_library):
    assert symbols.exported([autograd_library]) == {"PyInit__autograd"}
    dump = output_of("objdump", "-p", autograd_library)
    of_torch = {name for name in re.findall(r"NEEDED\s+(\S+)", dump) if re.match("libtorch|libc10", name)}
    # Those that a torch without CUDA has too.
    assert of_torch == {"libtorch_python.so", "libtorch_cpu.so", "libc10.so"}
    assert not re.findall(r"R(?:UN)?PATH\s+(\S+)", dump)


def test_paths_are_found(tmp_path):
    library = tmp_path / "library.so"
    library.write_bytes(
        b"\0/a/b/csrc/torch/ops.cpp\0x/opt/site-packages/torch/include/t.h\0torch/include/t.h\0/dev/null\0"
    )
    assert symbols.build_paths(library) == ["/a/b/csrc/torch/ops.cpp"]
    library.write_bytes(b" /opt/site-packages/torch/include/t.h ")
    assert symbols.build_paths(library) == ["/opt/site-packages/torch/include/t.h"]


@pytest.mark.skipif(not sysconfig.get_platform().endswith("x86_64"), reason="x86 instruction sets")
@pytest.mark.parametrize(("capability", "register"), [("avx2", "ymm"), ("avx512", "zmm")])
def test_each_instruction_set_is_used_and_stays_apart(capability, register, cpp):
    target = cpp.make(f"CMakeFiles/dreluop_cpu.dir/csrc/cpu/primitives_{capability}.cpp.o")

    # A weak symbol may be replaced by, or replace, the same function built for another instruction set.
    weak = re.findall(r" [WVu] (.*)", output_of("nm", "-C", target))
    assert [name for name in weak if not re.search(rf"{capability}::(primitives|batch_norm_loops)<", name)] == []

    mask = output_of("objdump", "-d", "-C", "--no-show-raw-insn", target)
    bodies = dict(re.findall(r"^[0-9a-f]+ <(.*)>:\n((?:.+\n)*)", mask, re.MULTILINE))
    of_batch_norm = ("activate", "add_moments", "add_gradients", "gradient")
    for loop in ("forward", "route", "regions", "add_run", "add_columns", *of_batch_norm):
        formats = [name for name in bodies if f"::{loop}<" in name]
        assert len(formats) >= 4, (loop, formats)
        for name in formats:
            assert register in bodies[name], f"{name} does not use {register}"


@pytest.mark.skipif(not native.is_loaded(), reason=f"native: {native.load_error}")
@pytest.mark.parametrize("name", schemas.SCHEMAS)
def test_every_operator_has_a_compiled_kernel(name):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"{schemas.NAMESPACE}::{name}", "CPU")
