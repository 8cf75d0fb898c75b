"""Several streams and several host threads at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

import dreluop
from tests.gpu.helpers import TRAVERSALS, assert_all_same_bits, every_result, inputs, sleep
from tests.support.cases import Case


@pytest.mark.parametrize("case", TRAVERSALS, ids=str)
def test_two_streams_at_once(case: Case) -> None:
    x, cap, grad = inputs(case, torch.float32)
    others = torch.randn_like(x), cap, torch.randn_like(grad)
    expected = [every_result(*arguments, case.dim) for arguments in ((x, cap, grad), others)]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    results: list[list[list[Tensor]]] = [[], []]
    for stream in streams:
        with torch.cuda.stream(stream):
            sleep()  # both queues fill before either runs
    for _ in range(10):
        for stream, arguments, kept in zip(streams, ((x, cap, grad), others), results, strict=True):
            with torch.cuda.stream(stream):
                kept.append(every_result(*arguments, case.dim))
    torch.cuda.synchronize()
    for kept, want in zip(results, expected, strict=True):
        for got in kept:
            assert_all_same_bits(got, want)


def test_memory_of_one_stream_is_not_given_to_another_too_early() -> None:
    # Results and workspaces are freed while the stream still runs: torch hands them out again on this stream only.
    x, cap, grad = inputs(Case((60_013, 7), (7,)), torch.float32)
    expected = every_result(x, cap, grad)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        sleep()
        for _ in range(20):
            results = every_result(x, cap, grad)
        for _ in range(20):
            torch.full((1 << 20,), 255, dtype=torch.uint8, device="cuda")
        torch.cuda.current_stream().synchronize()
    assert_all_same_bits(results, expected)


def test_host_threads_with_streams_of_their_own() -> None:
    work = [(case, inputs(case, torch.bfloat16)) for case in TRAVERSALS]
    expected = [every_result(*arguments, case.dim) for case, arguments in work]
    torch.cuda.synchronize()

    def run(index: int) -> list[Tensor]:
        case, arguments = work[index % len(work)]
        with torch.cuda.stream(torch.cuda.Stream()):
            results = every_result(*arguments, case.dim)
            torch.cuda.current_stream().synchronize()
        return results

    with ThreadPoolExecutor(4) as pool:
        for index, got in enumerate(pool.map(run, range(60))):
            assert_all_same_bits(got, expected[index % len(work)])


def test_backward_runs_on_the_stream_of_forward() -> None:
    case = Case((401, 1009), (1009,))
    x, cap, grad = inputs(case, torch.float32)
    leaves = [t.clone().requires_grad_() for t in (x, cap)]
    expected = torch.autograd.grad(dreluop.capped_relu(*leaves), leaves, grad)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        sleep()
        y = dreluop.capped_relu(*leaves)
    torch.cuda.current_stream().wait_stream(stream)
    assert_all_same_bits(torch.autograd.grad(y, leaves, grad), expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_tensors_on_a_device_that_is_not_the_current_one() -> None:
    case = TRAVERSALS[1]
    expected = every_result(*inputs(case, torch.float32, "cuda:0"), case.dim)
    with torch.cuda.device(0):
        results = every_result(*inputs(case, torch.float32, "cuda:1"), case.dim)
    assert all(t.device == torch.device("cuda:1") for t in results)
    assert_all_same_bits(results, expected)
