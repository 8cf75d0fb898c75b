"""Reading the machine code of compiled kernels, without a GPU."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
REGISTERS = 65536  # of a multiprocessor, on every one of these architectures


def find_tool(name: str) -> Path | None:
    site = Path(sysconfig.get_paths()["purelib"])
    candidates = [site / "nvidia/cu13/bin" / name, site / "triton/backends/nvidia/bin" / name]
    return next((c for c in candidates if c.exists()), None) or (Path(p) if (p := shutil.which(name)) else None)


CUOBJDUMP, NVDISASM = find_tool("cuobjdump"), find_tool("nvdisasm")
MISSING_TOOLS = "needs cuobjdump, nvdisasm (pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm)"


def has_tools() -> bool:
    return CUOBJDUMP is not None and NVDISASM is not None


def cuobjdump(path: Path, *flags: str) -> str:
    assert CUOBJDUMP is not None, MISSING_TOOLS
    assert NVDISASM is not None, MISSING_TOOLS
    env = {**os.environ, "PATH": f"{NVDISASM.parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run([CUOBJDUMP, *flags, path], env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0 and "does not contain device code" not in done.stdout + done.stderr:
        raise RuntimeError(f"cuobjdump {' '.join(flags)} {path}: {done.stdout}{done.stderr}")
    return done.stdout


@dataclass
class Function:
    """The operations of a kernel in order, with their operands, its registers, and the bytes of its stack."""

    code: list[str]
    operands: list[str]
    registers: int = 0
    stack: int = 0


def functions_in(path: Path, arch: str) -> dict[str, Function]:
    """The kernels of a file for an architecture, by mangled name."""
    sass = cuobjdump(path, "--dump-sass", "-arch", arch)
    found = {}
    for name, body in re.findall(r"Function : (\S+)\n(.*?)(?=\n\s*Function : |\Z)", sass, re.DOTALL):
        found_here = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);", body)
        found[name] = Function([op for op, _ in found_here], [operands for _, operands in found_here])
    usage = cuobjdump(path, "--dump-resource-usage", "-arch", arch)
    for name, registers, stack in re.findall(r"Function (\S+):\s*REG:(\d+) STACK:(\d+)", usage):
        found[name].registers, found[name].stack = int(registers), int(stack)
    return found


def wide_accesses(code: list[str], access: str) -> list[str]:
    """16-byte ``LDG`` or ``STG``."""
    return [op for op in code if op.startswith(f"{access}.") and ".128" in op]


def local_accesses(code: list[str]) -> list[str]:
    return [op for op in code if op.split(".")[0] in ("LDL", "STL")]


def in_flight_at_each_wait(function: Function) -> list[int]:
    """How many 16-byte loads have been asked for, each time that a register of one is first read."""
    waits: list[int] = []
    pending: set[int] = set()
    asked = 0
    for op, operands in zip(function.code, function.operands, strict=True):
        registers = [int(number) for number in re.findall(r"\bR(\d+)\b", operands)]
        if op.startswith("LDG") and ".128" in op:
            pending.update(range(registers[0], registers[0] + 4))
            asked += 1
            continue
        # The first operand is written, but for stores, which have an address there, and comparisons, which have none.
        writes = re.match(r"\s*R\d+\b", operands) is not None
        if pending.intersection(registers[1:] if writes else registers):
            waits.append(asked)
            pending, asked = set(), 0
    return waits


def most_before_a_store(code: list[str]) -> int:
    """16-byte loads asked for before anything is stored; some may have been waited for."""
    asked = most = 0
    for op in code:
        if op.startswith("LDG") and ".128" in op:
            asked += 1
            most = max(most, asked)
        elif op.startswith("STG"):
            asked = 0
    return most


def register_ceiling(threads: int, blocks: int) -> int:
    """Registers that let a multiprocessor hold so many blocks at once."""
    return REGISTERS // (threads * blocks) // 8 * 8


def check_fences_around_counts(code: list[str], after: str = "MEMBAR") -> None:
    """A fence before a block counts itself, one after it has counted: the last block sees the sums of the others.

    ``after``: what the second must be. An acquiring count drops the first-level cache (CCTL.IVALL), no more.
    """
    counted = [place for place, op in enumerate(code) if op.startswith("ATOM")]
    fences = [place for place, op in enumerate(code) if op.startswith("MEMBAR")]
    acquires = [place for place, op in enumerate(code) if op.startswith(after)]
    assert counted, "counts no blocks"
    for place, following in zip(counted, [*counted[1:], len(code)], strict=True):
        assert any(fence < place for fence in fences), "nothing orders the sums before they are counted"
        assert any(place < fence < following for fence in acquires), "no fence after the count"
