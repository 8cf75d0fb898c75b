"""Launches that the operators make, recorded instead of run, and compiled for GPUs that are not there.

What the compiler may assume of the arguments is derived from those of the recorded launch, by Triton's own binder.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from dreluop.backends.triton import functions, plan, tuning
from tests.build.machine_code import Function, functions_in

PROCESSORS = 132


@dataclass
class Launch:
    kernel: Any
    programs: int
    arguments: tuple[Any, ...]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return str(self.kernel.fn.__name__)

    def compiled(self, capability: int) -> Any:
        import triton  # noqa: PLC0415
        from triton.backends.compiler import GPUTarget  # noqa: PLC0415
        from triton.compiler import ASTSource, make_backend  # noqa: PLC0415
        from triton.runtime.jit import create_function_from_signature  # noqa: PLC0415

        target = GPUTarget("cuda", capability, 32)
        backend = make_backend(target)
        # As JITFunction.run does, up to the driver.
        binder = create_function_from_signature(self.kernel.signature, self.kernel.params, backend)
        bound, specialization, options = binder(*self.arguments, **self.options)
        options, signature, constants, attributes = self.kernel._pack_args(
            backend, self.options, bound, specialization, options
        )
        source = ASTSource(self.kernel, signature, constants, attributes)
        return triton.compile(source, target=target, options=options.__dict__)

    def machine_code(self, arch: str) -> Function:
        compiled = self.compiled(int(arch.removeprefix("sm_")))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "kernel.cubin"
            path.write_bytes(compiled.asm["cubin"])
            (function,) = functions_in(path, arch).values()
        return function


def record(
    monkeypatch: pytest.MonkeyPatch, call: Callable[[dict[str, Callable[..., Any]]], object], *, run: bool = False
) -> list[Launch]:
    """The launches of ``call(operators)``, planned as for a GPU; ``run``: done too, by the interpreter."""
    from dreluop.backends.triton import backward, forward, jvp, launch, penalty, saturation, surrogate  # noqa: PLC0415

    launches: list[Launch] = []

    def recorded(
        kernel: Any, programs: int, device: torch.device, *arguments: Any, warps: int = 4, **named: Any
    ) -> None:
        if programs > 0:
            launches.append(Launch(kernel, programs, arguments, {**named, "num_warps": warps}))
        if run:
            launch.launch(kernel, programs, device, *arguments, warps=warps, **named)

    with monkeypatch.context() as patch:
        for module in (backward, forward, jvp, penalty, saturation, surrogate):
            patch.setattr(module, "launch", recorded)
        patch.setattr(tuning, "processors", lambda device: PROCESSORS)
        patch.setitem(tuning._chosen, "cpu", plan.Tuning())
        call(dict(functions()))
    return launches
