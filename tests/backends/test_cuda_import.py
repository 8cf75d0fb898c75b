"""CUDA is left alone until it is used: nothing at import, fork works before and fails as torch says after."""

from __future__ import annotations

import os

import pytest

from dreluop._internal import env
from tests.support import fresh_python
from tests.support.backends import native_cuda_or_skip

pytestmark = pytest.mark.slow


def run(program: str, **environment: str) -> str:
    done = fresh_python.run(program, environment={**os.environ, **environment})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


UNTOUCHED = """
import os, torch

def refuse(*_):
    raise AssertionError("CUDA was initialized")

def devices():
    links = (f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd"))
    return {os.readlink(link) for link in links if os.path.exists(link)}

torch.cuda._lazy_init = torch._C._cuda_init = refuse
before = devices()
import dreluop
x = torch.randn(4, 3, requires_grad=True)
y, penalty = dreluop.capped_relu(x, torch.ones(3, requires_grad=True), balancer=0.5)
(y.sum() + penalty).backward()
assert not torch.cuda.is_initialized()
assert not [name for name in devices() - before if "nvidia" in name]
"""


def test_import_and_cpu_tensors_do_not_initialize_cuda() -> None:
    run(UNTOUCHED)


def test_the_check_above_can_fail() -> None:
    with pytest.raises(AssertionError, match="CUDA was initialized"):
        run(UNTOUCHED.replace("import dreluop\n", "import dreluop\ntorch.cuda.init()\n"))


FORK = """
import os, sys, torch, dreluop

def use():
    return dreluop.capped_relu(torch.full((2, 3), 5.0, device="cuda"), 1.0).sum().item()

{before}
child = os.fork()
if child == 0:
    try:
        print("child", use(), flush=True)
    except RuntimeError as error:
        print("child", error, flush=True)
    os._exit(0)
os.waitpid(child, 0)
print("parent", use())
"""


@pytest.mark.gpu
def test_fork_before_the_first_use() -> None:
    native_cuda_or_skip()
    assert run(FORK.format(before="dreluop.capped_relu(torch.ones(2, 3), 1.0)")).split() == [
        "child", "6.0", "parent", "6.0",
    ]  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize("before", ["use()", "torch.cuda.init()"])
def test_fork_after_the_first_use_gives_the_error_of_torch(before: str) -> None:
    native_cuda_or_skip()
    printed = run(FORK.format(before=before))
    assert "child Cannot re-initialize CUDA in forked subprocess" in printed
    assert printed.splitlines()[-1] == "parent 6.0"


@pytest.mark.gpu
def test_the_reference_serves_where_it_is_asked_for() -> None:
    native_cuda_or_skip()
    program = """
import torch, dreluop
print(dreluop.backends.native.cuda_reason())
print(dreluop.capped_relu(torch.full((2, 3), 5.0, device="cuda"), 1.0).sum().item())
"""
    reason, value = run(program, **{env.ENVIRONMENT_VARIABLE: "reference"}).splitlines()
    assert reason != "None"
    assert value == "6.0"
