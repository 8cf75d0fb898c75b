"""Print versions, build options, backends with reasons, and a self-check. Exit code 1 on a mismatch."""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
from collections.abc import Sequence

import torch

from dreluop._internal import env
from dreluop.autograd import fast_path
from dreluop.backends import native, selection
from dreluop.cli import selfcheck
from dreluop.version import __version__


def _cuda_line() -> str:
    code = (native.cuda_kernels and native.cuda_kernels.built_for()) or "no code"
    reason = native.cuda_reason()
    return f"CUDA         {code}" + ("" if reason is None else f"; not serving: {reason}")


def _autograd_line() -> str:
    reason = fast_path.reason
    return "autograd     " + ("by the compiled node" if reason is None else f"by Python; no compiled node: {reason}")


def _build_lines() -> list[str]:
    try:
        from dreluop import _C  # noqa: PLC0415 (absent in a pure Python install)
    except ImportError as error:
        return [f"build        no dreluop._C: {error}"]
    info = _C.build_info()
    lines = [
        f"build        {info['version']}, {info['compiler']}, headers of torch {info['torch_headers']}, "
        f"runs on torch >= {info['torch_target']}",
        _cuda_line(),
        f"CPU          {_C.cpu_capability()}, {torch.get_num_threads()} threads",
    ]
    wanted = os.environ.get(native.CPU_CAPABILITY_VARIABLE, "")
    if wanted not in ("", _C.cpu_capability()):
        lines.append(f"warning      {native.CPU_CAPABILITY_VARIABLE}={wanted} asks for what this machine does not have")
    if info["version"] != __version__:
        lines.append(f"warning      the compiled part is of version {info['version']}: build it again")
    return lines


def _served_by(device: str) -> str:
    chosen = env.requested()
    if chosen is None:
        return f"are served by {selection.available_backends(device)[0]}"
    reason = selection.unavailable_reason(chosen, device)
    asked = f"{env.ENVIRONMENT_VARIABLE}={chosen}"
    return (
        f"are served by {chosen} ({asked})" if reason is None else f"are an error ({asked}, which does not serve them)"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dreluop", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__, help="print the version and end")
    parser.parse_args(arguments)
    print(f"dreluop      {__version__}")
    print(f"torch        {torch.__version__}")
    print(f"python       {platform.python_version()}, {platform.platform()}")
    print(*_build_lines(), _autograd_line(), sep="\n")
    for backend in selfcheck.backends():
        print(f"{backend.name:12} serves {', '.join(backend.devices) or 'nothing'}")
        for device, reason in backend.reasons.items():
            print(f"{'':12} not {device}: {reason}")
    for device in selection.DEFAULT_RULE:
        print(f"{device + ' tensors':12} {_served_by(device)}")
    results = selfcheck.run()
    wrong = [result for result in results if not result.agrees]
    for result in wrong:
        print(f"MISMATCH     {result.backend} {result.operator}: {result.case}")
    if not results:
        print("self-check   nothing to compare: only the reference serves")
    else:
        print(f"self-check   {len(results) - len(wrong)} of {len(results)} comparisons with the reference agree")
    return 1 if wrong else 0


def _run() -> int:
    try:
        try:
            return main()
        finally:
            if sys.stdout is not None:  # None where it was closed before Python began (`>&-`).
                sys.stdout.flush()
    except BrokenPipeError:
        # The reader (`| head -1`) has what it wanted. Python flushes once more as it ends, to where that is no error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


if __name__ == "__main__":
    sys.exit(_run())
