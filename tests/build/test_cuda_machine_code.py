"""The machine code of the CUDA kernels: wide accesses to memory, nothing spilled, few enough registers.

Needs no GPU: it reads the compiled library, or the objects named by DRELUOP_CUDA_OBJECTS (separated by ``:``).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.build.machine_code import (
    ARCHITECTURES,
    MISSING_TOOLS,
    Function,
    check_fences_around_counts,
    cuobjdump,
    functions_in,
    has_tools,
    in_flight_at_each_wait,
    local_accesses,
    register_ceiling,
    wide_accesses,
)

ROOT = Path(__file__).parents[2]
LIBRARY = ROOT / "dreluop" / "_ops.abi3.so"

FORMATS = ("Native<float>", "Float16", "BFloat16")
MODES = (0, 1)  # CapMode: kSpan, kAligned
WAYS = ("false", "true")  # by segments, packed
# Of batch norm: Step, of which the first and the third only sum.
STEPS = MOMENTS, ACTIVATION, GRADIENT_SUMS, GRADIENTS = range(4)
WITHOUT_SUMS = ("jvp", "surrogate")
# Kernels of a training step, by the arguments of their traits (Access 0 is kVector, 1 kGeneral), with the threads of a
# block and the blocks that a multiprocessor must hold at once.
HOT = {
    **{f"forward_kernel<{f}, 0, {m}, false>": (256, 4) for f in FORMATS for m in MODES},
    **{f"forward_kernel<{f}, 0, {m}, true>": (256, 3) for f in FORMATS for m in MODES},
    **{f"backward_rows_kernel<{f}, 0, 1, {w}>": (256, 4) for f in FORMATS for w in WAYS},
    **{f"backward_rows_kernel<{f}, 0, 2, {w}>": (256, 3) for f in FORMATS for w in WAYS},
    **{f"backward_columns_kernel<{f}, 0, 1, false>": (256, 3) for f in FORMATS},
    **{f"backward_columns_kernel<{f}, 0, 2, false>": (256, 2) for f in FORMATS},
    "forward_general_kernel<Native<double>, 1, 2, true>": (256, 3),
    "backward_rows_kernel<Native<double>, 1, 2, false>": (256, 2),
    "backward_columns_kernel<Native<double>, 1, 2, false>": (256, 2),
    # Two sums of doubles for each of eight columns.
    **{f"backward_columns_kernel<{f}, 1, 2, false>": (256, 1) for f in FORMATS[1:]},
    **{f"{name}_kernel<{f}, 1, 2>": (256, 4) for name in WITHOUT_SUMS for f in (*FORMATS, "Native<double>")},
    **{f"batch_norm_rows_kernel<{f}, 0, {step}, {w}>": (256, 3) for f in FORMATS for step in STEPS for w in WAYS},
    **{f"batch_norm_columns_kernel<{f}, 0, {step}, false>": (256, 2) for f in FORMATS for step in STEPS},
}
# Three sums for each of eight columns: one block at once, which asks for eight vectors in place of four.
ALONE = {f"batch_norm_columns_kernel<{f}, 0, {GRADIENT_SUMS}, false>": (256, 1) for f in FORMATS[1:]}
HOT |= ALONE


def sums(name: str) -> bool:
    """Whether blocks leave partial sums."""
    step = re.search(r"batch_norm.*, 0, (\d), \w+>", name)
    return int(step[1]) in (MOMENTS, GRADIENT_SUMS) if step else not name.startswith(WITHOUT_SUMS)


def inspected() -> list[Path]:
    objects = os.environ.get("DRELUOP_CUDA_OBJECTS")
    return [Path(p) for p in objects.split(":")] if objects else [LIBRARY]


def readable(mangled: str) -> str:
    """``forward_kernel<BFloat16, 0, 1, false>`` of the mangled name of ``forward_kernel<ForwardTraits<...>>``."""
    name = subprocess.run(["c++filt", mangled], capture_output=True, text=True, check=True).stdout.strip()
    name = re.sub(r"\((Access|CapMode|Step)\)", "", re.sub(r"dreluop::(cuda::)?", "", name))
    name = re.sub(r"^void (.*?)\((?!.*>\().*$", r"\1", name).replace("> >", ">>")
    return re.sub(r"<\w+Traits<(.*)>>$", r"<\1>", name)


@pytest.fixture(scope="module")
def kernels() -> dict[str, dict[str, Function]]:
    """For every architecture, the kernels by their readable names."""
    if not has_tools() or shutil.which("c++filt") is None:
        pytest.skip(f"{MISSING_TOOLS} and c++filt")
    files = [path for path in inspected() if path.exists()]
    if not files:
        pytest.skip(f"{inspected()[0]} is not built")
    files = [path for path in files if "sm_" in cuobjdump(path, "--list-elf")]
    if not files:
        pytest.skip(f"{inspected()[0]} holds no CUDA code")
    names: dict[str, str] = {}
    result: dict[str, dict[str, Function]] = {}
    for arch in ARCHITECTURES:
        found = result.setdefault(arch, {})
        for path in files:
            for mangled, function in functions_in(path, arch).items():
                found[names.setdefault(mangled, readable(mangled))] = function
    return result


def test_every_hot_kernel_is_found(kernels):
    for arch in ARCHITECTURES:
        missing = set(HOT) - set(kernels[arch])
        assert not missing, f"{arch}: no {sorted(missing)} among {sorted(kernels[arch])}"


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("name", HOT)
def test_reads_and_writes_are_wide(kernels, arch, name):
    only_sums = name.startswith("batch_norm") and sums(name)
    for access in ("LDG",) if only_sums else ("LDG", "STG"):
        assert wide_accesses(kernels[arch][name].code, access), f"{name} on {arch} has no 128-bit {access}"


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_nothing_is_kept_in_local_memory(kernels, arch):
    local = {name: found for name, kernel in kernels[arch].items() if (found := local_accesses(kernel.code))}
    assert not local, f"on {arch} keep values in local memory: {local}"


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("name", HOT)
def test_registers_allow_the_planned_occupancy(kernels, arch, name):
    threads, blocks = HOT[name]
    ceiling, used = register_ceiling(threads, blocks), kernels[arch][name].registers
    assert used <= ceiling, f"{name} on {arch} uses {used} registers; {blocks} blocks of {threads} need <= {ceiling}"


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("name", [name for name in HOT if ", 0, " in name])
def test_several_loads_are_in_flight(kernels, arch, name):
    waits = in_flight_at_each_wait(kernels[arch][name])
    assert max(waits, default=0) >= 4, f"{name} on {arch} asks for {waits} vectors, each time before it waits"
    if name.startswith("forward"):
        return  # which waits for the caps of its elements too
    of_batch, batch = 0, 8 if name in ALONE else 4
    for asked in waits:
        few = f"{name} on {arch} asks for {waits} vectors: it waits for too few of {batch}"
        assert of_batch > 0 or asked >= 3, few
        of_batch = of_batch + asked if of_batch + asked < batch else 0


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("name", [name for name in HOT if sums(name)])
def test_the_last_block_sees_the_sums_of_the_others(kernels, arch, name):
    # The host shim has no memory order to test.
    check_fences_around_counts(kernels[arch][name].code)
