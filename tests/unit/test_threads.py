"""Several threads and processes at once: every result has the bits of a single thread's."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import dreluop
from dreluop.backends import selection
from dreluop.backends.selection import BackendName
from tests.support import oracle
from tests.support.backends import native_or_skip
from tests.support.cases import DTYPES
from tests.support.patience import PATIENCE

THREADS = 4
ROUNDS = 15
BACKENDS: tuple[BackendName, ...] = ("native", "reference")
# Several tiles for the threads inside an operator.
X_SHAPE = (16, 24, 33, 9)
CAP_SHAPES = ((1,), X_SHAPE[1:2], X_SHAPE[1:])
# A hang is a failure, not a wait without end.

Results = tuple[Tensor, ...]


@pytest.fixture(autouse=True)
def native() -> None:
    native_or_skip()


@pytest.fixture
def two_threads_inside(threads: Callable[[int], None]) -> None:
    threads(2)


WAYS = ("mask", "penalty", "in place")
# Neighbors differ in backend and way.
TASKS = list(itertools.product(DTYPES, CAP_SHAPES, WAYS, BACKENDS))


def work(index: int) -> Results:
    """Forward and backward of a task, with a backend of its own."""
    dtype, cap_shape, way, backend = TASKS[index]
    generator = torch.Generator().manual_seed(index)
    x, residual, grad = (torch.randn(X_SHAPE, generator=generator).to(dtype) for _ in range(3))
    cap = (2 * torch.rand(cap_shape, generator=generator)).to(dtype)
    leaves = [t.requires_grad_() for t in (x, cap, residual)]
    with dreluop.use_backend(backend):
        if way == "mask":
            y = dreluop.capped_relu(x, cap, save="mask", residual=residual)
        elif way == "penalty":
            y, penalty = dreluop.capped_relu(x, cap, balancer=0.25, residual=residual)
        else:
            y = dreluop.capped_relu(x + residual, cap, inplace=True)
        gradients = torch.autograd.grad(y, leaves, grad, retain_graph=way == "penalty")
        if way == "penalty":
            gradients += torch.autograd.grad(penalty, cap)
        counts = dreluop.saturation(x.detach(), cap.detach())
    return (y.detach(), *gradients, counts.inside, counts.capped)


def assert_equal(got: Results, expected: Results) -> None:
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        oracle.assert_same_bits(one, other)


@pytest.fixture(scope="module")
def alone() -> list[Results]:
    """What each task gives where nothing else runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    found = [work(index) for index in range(len(TASKS))]
    torch.set_num_threads(before)
    return found


def test_python_threads_at_once(alone: list[Results], two_threads_inside: None) -> None:
    start = threading.Barrier(THREADS)

    def run(thread: int) -> None:
        start.wait(PATIENCE)
        # Each thread has another order, so that unlike tasks meet.
        for index in random.Random(thread).sample(range(len(TASKS)), len(TASKS)):
            assert_equal(work(index), alone[index])

    with ThreadPoolExecutor(THREADS) as pool:
        for done in [pool.submit(run, thread) for thread in range(THREADS)]:
            done.result(PATIENCE)


def test_every_thread_keeps_its_backend(two_threads_inside: None) -> None:
    start = threading.Barrier(THREADS)

    def run(thread: int) -> None:
        name = BACKENDS[thread % 2]
        with dreluop.use_backend(name):
            start.wait(PATIENCE)
            for _ in range(200):
                assert selection.operators() is selection.operators_of(name)
                x = torch.randn(4, 8, requires_grad=True)
                y = dreluop.capped_relu(x, torch.ones(8))
                # Of a backward the backend is its forward's, and the thread's own is back afterwards.
                with dreluop.use_backend(BACKENDS[1 - thread % 2]):
                    y.sum().backward()
        assert selection.operators() is selection.operators_of("native")

    with ThreadPoolExecutor(THREADS) as pool:
        for done in [pool.submit(run, thread) for thread in range(THREADS)]:
            done.result(PATIENCE)


def test_one_module_in_several_threads(two_threads_inside: None) -> None:
    layer = dreluop.DReLU(24, init=1.0)
    xs = [torch.randn(X_SHAPE) for _ in range(THREADS)]

    def run(x: Tensor) -> list[Results]:
        return [(y := layer(x), *torch.autograd.grad(y.square().sum(), layer.cap)) for _ in range(ROUNDS)]

    expected = [run(x)[0] for x in xs]
    with ThreadPoolExecutor(THREADS) as pool:
        for found, want in zip(pool.map(run, xs, timeout=PATIENCE), expected, strict=True):
            for got in found:
                assert_equal(got, want)


FIRST_CALLS = """
import sys, threading
sys.setswitchinterval(1e-6)
import torch
start, failed, seen = threading.Barrier(4), [], []
def run():
    try:
        start.wait()
        import dreluop
        x, cap = torch.arange(12.0).view(3, 4).requires_grad_(), torch.full((4,), 3.0)
        y = dreluop.capped_relu(x, cap)
        (dx,) = torch.autograd.grad(y.sum(), x)
        seen.append((y.sum().item(), dx.sum().item(), dreluop.available_backends()[0]))
    except BaseException as error:
        failed.append(repr(error))
threads = [threading.Thread(target=run) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert not failed, failed
assert seen == [(30.0, 2.0, "native")] * 4, seen
print("ok")
"""


@pytest.mark.slow
def test_first_import_and_first_calls_from_several_threads() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FIRST_CALLS], capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    assert done.stdout.strip() == "ok", done.stdout + done.stderr


class Activated(Dataset[Results]):
    """Runs a task where its item is made: in a worker."""

    def __len__(self) -> int:
        return len(TASKS)

    def __getitem__(self, index: int) -> Results:
        return work(index)


def first(batch: list[Results]) -> Results:
    return batch[0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_of_a_data_loader(
    method: str, request: pytest.FixtureRequest, alone: list[Results], two_threads_inside: None
) -> None:
    if method == "fork" and passed_in_a_fresh_process(request):
        return
    # The parent's threads have worked, forward and backward, before a worker is forked from it.
    assert_equal(work(0), alone[0])
    loader: Any = DataLoader(
        Activated(), num_workers=2, collate_fn=first, multiprocessing_context=method, timeout=PATIENCE
    )
    found = 0
    for index, got in enumerate(loader):
        assert_equal(got, alone[index])
        found += 1
    assert found == len(TASKS)
    # The parent still works, on its own threads.
    assert_equal(work(1), alone[1])


FRESH = "DRELUOP_TEST_FRESH"


def passed_in_a_fresh_process(request: pytest.FixtureRequest) -> bool:
    """Run this test by itself elsewhere; False if here is elsewhere.

    Torch refuses backward in a fork once its engine has started threads, which any earlier test may have made it do
    (reentrant checkpointing does).
    """
    if FRESH in os.environ:
        return False
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", request.node.nodeid],
        cwd=request.config.rootpath, env=environment | {FRESH: "1"}, capture_output=True, text=True, check=False,
        timeout=3 * PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    return True


def _in_a_child(indices: list[int], sender: Any) -> None:
    # As in a DataLoader's worker: the threads of torch's OpenMP do not live on in a fork, and are waited for.
    torch.set_num_threads(1)
    sender.send([[t.double().numpy() for t in work(index)] for index in indices])


@pytest.fixture
def forked() -> Iterator[Callable[[list[int]], list[Results]]]:
    context = multiprocessing.get_context("fork")

    def run(indices: list[int]) -> list[Results]:
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=_in_a_child, args=(indices, sender))
        child.start()
        assert receiver.poll(PATIENCE), "the child gave no result"
        found = receiver.recv()
        child.join(PATIENCE)
        assert child.exitcode == 0
        return [tuple(torch.from_numpy(t) for t in results) for results in found]

    yield run
    for child in multiprocessing.active_children():
        child.kill()


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_fork_after_import_and_use(
    request: pytest.FixtureRequest,
    forked: Callable[[list[int]], list[Results]],
    alone: list[Results],
    two_threads_inside: None,
) -> None:
    if passed_in_a_fresh_process(request):
        return
    assert_equal(work(2), alone[2])
    indices = list(range(len(TASKS)))
    for got, want in zip(forked(indices), alone, strict=True):
        assert_equal(got, tuple(t.double() for t in want))
    assert_equal(work(3), alone[3])
