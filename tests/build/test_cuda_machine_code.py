"""The machine code of the CUDA kernels: wide accesses to memory, nothing spilled, few enough registers.

Needs no GPU: it reads the compiled library, or the objects named by DRELUOP_CUDA_OBJECTS (separated by ``:``).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIBRARY = ROOT / "dreluop" / "_ops.abi3.so"
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
REGISTERS = 65536  # of a multiprocessor, on every one of these architectures

FORMATS = ("Native<float>", "Float16", "BFloat16")
MODES = (0, 1)  # CapMode: kSpan, kAligned
ELEMENTWISE = ("tangent", "surrogate")  # no sums
# Kernels on the way of a training step, by their template arguments (Access 0 is kVector, 1 kGeneral), with the threads
# of a block and the blocks that a multiprocessor must hold at once.
HOT = {
    **{f"forward_kernel<{f}, 0, {m}, false>": (256, 4) for f in FORMATS for m in MODES},
    **{f"forward_kernel<{f}, 0, {m}, true>": (256, 3) for f in FORMATS for m in MODES},
    **{f"backward_rows_kernel<{f}, 0, 1>": (256, 4) for f in FORMATS},
    **{f"backward_rows_kernel<{f}, 0, 2>": (256, 3) for f in FORMATS},
    **{f"backward_columns_kernel<{f}, 0, 1>": (256, 3) for f in FORMATS},
    **{f"backward_columns_kernel<{f}, 0, 2>": (256, 2) for f in FORMATS},
    "forward_kernel<Native<double>, 1, 2, true>": (256, 3),
    "backward_rows_kernel<Native<double>, 1, 2>": (256, 2),
    "backward_columns_kernel<Native<double>, 1, 2>": (256, 2),
    **{f"{name}_kernel<{f}>": (256, 4) for name in ELEMENTWISE for f in (*FORMATS, "Native<double>")},
}


def find_tool(name: str) -> Path | None:
    site = Path(sysconfig.get_paths()["purelib"])
    candidates = [site / "nvidia/cu13/bin" / name, site / "triton/backends/nvidia/bin" / name]
    return next((c for c in candidates if c.exists()), None) or (Path(p) if (p := shutil.which(name)) else None)


CUOBJDUMP, NVDISASM = find_tool("cuobjdump"), find_tool("nvdisasm")


def inspected() -> list[Path]:
    objects = os.environ.get("DRELUOP_CUDA_OBJECTS")
    return [Path(p) for p in objects.split(":")] if objects else [LIBRARY]


def cuobjdump(path: Path, *flags: str) -> str:
    env = {**os.environ, "PATH": f"{NVDISASM.parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run([CUOBJDUMP, *flags, path], env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0 and "does not contain device code" not in done.stdout + done.stderr:
        raise RuntimeError(f"cuobjdump {' '.join(flags)} {path}: {done.stdout}{done.stderr}")
    return done.stdout


def readable(mangled: str) -> str:
    """``forward_kernel<BFloat16, 0, 1, false>`` of a mangled name."""
    name = subprocess.run(["c++filt", mangled], capture_output=True, text=True, check=True).stdout.strip()
    name = re.sub(r"\((Access|CapMode)\)", "", re.sub(r"dreluop::(cuda::)?", "", name))
    return re.sub(r"^void (.*?)\((?!.*>\().*$", r"\1", name).replace("> >", ">>")


@pytest.fixture(scope="module")
def kernels() -> dict[str, dict[str, dict[str, object]]]:
    """For every architecture and kernel: its instructions and its registers."""
    if CUOBJDUMP is None or NVDISASM is None or shutil.which("c++filt") is None:
        pytest.skip("needs cuobjdump, nvdisasm (pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm) and c++filt")
    files = [path for path in inspected() if path.exists()]
    if not files:
        pytest.skip(f"{inspected()[0]} is not built")
    files = [path for path in files if "sm_" in cuobjdump(path, "--list-elf")]
    if not files:
        pytest.skip(f"{inspected()[0]} holds no CUDA code")
    names: dict[str, str] = {}
    result: dict[str, dict[str, dict[str, object]]] = {}
    for arch in ARCHITECTURES:
        found = result.setdefault(arch, {})
        for path in files:
            sass = cuobjdump(path, "--dump-sass", "-arch", arch)
            for mangled, body in re.findall(r"Function : (\S+)\n(.*?)(?=\n\s*Function : |\Z)", sass, re.DOTALL):
                name = names.setdefault(mangled, readable(mangled))
                found[name] = {"code": re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", body)}
            usage = cuobjdump(path, "--dump-resource-usage", "-arch", arch)
            for mangled, registers, stack in re.findall(r"Function (\S+):\s*REG:(\d+) STACK:(\d+)", usage):
                found[names[mangled]] |= {"registers": int(registers), "stack": int(stack)}
    return result


def test_every_hot_kernel_is_found(kernels):
    for arch in ARCHITECTURES:
        missing = set(HOT) - set(kernels[arch])
        assert not missing, f"{arch}: no {sorted(missing)} among {sorted(kernels[arch])}"


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("name", HOT)
def test_reads_and_writes_are_wide(kernels, arch, name):
    code = kernels[arch][name]["code"]
    for access in ("LDG", "STG"):
        wide = [op for op in code if op.startswith(f"{access}.") and ".128" in op]
        assert wide, f"{name} on {arch} has no 128-bit {access}"


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("name", HOT)
def test_nothing_is_kept_in_local_memory(kernels, arch, name):
    local = [op for op in kernels[arch][name]["code"] if op.split(".")[0] in ("LDL", "STL")]
    assert not local, f"{name} on {arch} keeps values in local memory: {local}"


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("name", HOT)
def test_registers_allow_the_planned_occupancy(kernels, arch, name):
    threads, blocks = HOT[name]
    ceiling = REGISTERS // (threads * blocks) // 8 * 8
    used = kernels[arch][name]["registers"]
    assert used <= ceiling, f"{name} on {arch} uses {used} registers; {blocks} blocks of {threads} need <= {ceiling}"


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("name", [name for name in HOT if ", 0, " in name])
def test_several_loads_are_in_flight(kernels, arch, name):
    in_flight = most = 0
    for op in kernels[arch][name]["code"]:
        if op.startswith("LDG") and ".128" in op:
            in_flight += 1
            most = max(most, in_flight)
        elif op.startswith("STG"):
            in_flight = 0
    assert most >= 4, f"{name} on {arch} asks for no more than {most} vectors before it waits"


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("name", [name for name in HOT if not name.startswith(ELEMENTWISE)])
def test_the_last_block_sees_the_sums_of_the_others(kernels, arch, name):
    # The host shim has no memory order to test: a fence before a block counts itself, one after it has counted.
    code = kernels[arch][name]["code"]
    counted = [place for place, op in enumerate(code) if op.startswith("ATOM")]
    fences = [place for place, op in enumerate(code) if op.startswith("MEMBAR")]
    assert counted, f"{name} on {arch} counts no blocks"
    for place, following in zip(counted, [*counted[1:], len(code)], strict=True):
        assert min(fences) < place, f"{name} on {arch}: nothing orders the sums before they are counted"
        assert any(place < fence < following for fence in fences), f"{name} on {arch}: no fence after the count"
