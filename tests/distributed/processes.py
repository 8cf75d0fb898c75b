"""A pool of processes joined by gloo: tests run their bodies on all of them, without starting any anew."""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import multiprocessing

from tests.support.patience import PATIENCE

# Seconds for an answer, and for the others' answers after a failure.
MERCY = 3.0


class Processes:
    """``size`` processes with a default process group; ``run`` calls a function on all of them."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._store = tempfile.TemporaryDirectory()
        # One process imports torch, and all others are copies of it.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch.distributed.tensor.parallel", "torch.distributed.fsdp", "dreluop"])
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(size):
            ours, theirs = context.Pipe()
            arguments = (theirs, rank, size, str(Path(self._store.name) / "store"), list(sys.path))
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, module: str, function: str, arguments: dict[str, Any]) -> None:
        """Call the body of a test everywhere; the first failure is raised here."""
        for pipe in self._pipes:
            pipe.send((module, function, arguments))
        failures = []
        waiting = dict(zip(self._pipes, range(self.size), strict=True))
        while waiting:
            # Where one failed, the others may wait for it in the middle of a collective operation.
            answered = wait(list(waiting), PATIENCE if not failures else MERCY)
            if not answered:
                failures += [f"process {rank} of {self.size}: gave no answer" for rank in waiting.values()]
                break
            for pipe in answered:
                rank = waiting.pop(pipe)  # type: ignore[arg-type]
                if (failure := _answer(pipe)) is not None:  # type: ignore[arg-type]
                    failures.append(f"process {rank} of {self.size}: {failure}")
        if failures:
            # What the others do now nobody knows: nothing more can be asked of this pool.
            self.close()
            pytest.fail("\n".join(failures), pytrace=False)

    @property
    def closed(self) -> bool:
        return not self._processes

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()
        self._processes = []
        self._store.cleanup()


def _answer(pipe: Connection) -> str | None:
    try:
        failure: str | None = pipe.recv()
    except EOFError:
        return "ended"
    return failure


def _serve(pipe: Connection, rank: int, size: int, store: str, path: list[str]) -> None:
    sys.path[:] = path
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    while True:
        try:
            module, function, arguments = pipe.recv()
        except EOFError:
            return
        try:
            torch.manual_seed(0)
            body = inspect.unwrap(getattr(importlib.import_module(module), function))
            body(**arguments)
            pipe.send(None)
        except Exception:
            pipe.send(traceback.format_exc())


def on_processes(*sizes: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run the test's body on this many processes, once for each size. Its parameters must be picklable."""

    def decorate(body: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(body)
        def test(processes: Processes, **arguments: Any) -> None:
            processes.run(body.__module__, body.__name__, arguments)

        signature = inspect.signature(body)
        first = inspect.Parameter("processes", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        test.__signature__ = signature.replace(parameters=[first, *signature.parameters.values()])  # type: ignore[attr-defined]
        return pytest.mark.parametrize("processes", sizes, indirect=True, ids=lambda size: f"{size}-processes")(test)

    return decorate
