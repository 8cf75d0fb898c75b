"""The rules are registered when torch's engine is imported, in whatever order and by whomever, and not before."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.patience import PATIENCE

# Each imports the engine from another place, some of which the engine imports too.
ORDERS = (
    "torch.distributed.tensor, dreluop",
    "dreluop, torch.distributed.tensor",
    "dreluop, torch.distributed.fsdp",
    "dreluop, torch.distributed.tensor.placement_types",
    "dreluop, torch.distributed.tensor.experimental",
    "dreluop, torch.nn.attention.flex_attention, torch.distributed.checkpoint",
    "dreluop, torch._dynamo",
)

# Torch itself is imported once: the orders are tried by copies of that process.
IN_COPIES = """
import os, sys, torch

def tried(order):
    exec(f"import {order}")
    import dreluop
    from torch.distributed.device_mesh import init_device_mesh
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}-{os.getpid()}", rank=0, world_size=1)
    from torch.distributed.tensor import DTensor, Replicate, Shard
    mesh = init_device_mesh("cpu", (1,))
    x = DTensor.from_local(torch.tensor([[-1.0, 1.0, 3.0]]), mesh, [Shard(0)])
    cap = DTensor.from_local(torch.tensor([2.0, 2.0, 2.0]), mesh, [Replicate()])
    with torch.inference_mode():
        y = torch.ops.dreluop.capped_relu(x, cap)
    assert y.placements == (Shard(0),) and y.to_local().tolist() == [[0.0, 1.0, 2.0]], y
    watchers = [finder for finder in sys.meta_path if type(finder).__module__.startswith("dreluop")]
    assert not watchers, watchers
    assert "SourceFileLoader" in str(type(sys.modules["torch.distributed.tensor"].__spec__.loader))

def nothing_imported(_):
    import dreluop
    engine = [module for module in sys.modules if module.startswith("torch.distributed.tensor")]
    assert not engine, engine

def refused(_):
    import types
    sys.modules["dreluop.distributed.rules"] = types.ModuleType("without rules")
    import dreluop
    from torch.distributed.tensor import DTensor, Shard
    from torch.distributed.device_mesh import init_device_mesh
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}-{os.getpid()}", rank=0, world_size=1)
    x = DTensor.from_local(torch.ones(1, 3), init_device_mesh("cpu", (1,)), [Shard(0)])
    try:
        dreluop.capped_relu(x, 1.0)
    except RuntimeError as error:
        assert "did not take the sharding rules of dreluop" in str(error), error
    else:
        raise AssertionError("no error")

def copy(function, argument):
    child = os.fork()
    if child == 0:
        try:
            function(argument)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

store, *orders = sys.argv[1:]
failed = [order for order in orders if copy(tried, order)]
failed += [function.__name__ for function in (nothing_imported, refused) if copy(function, None)]
sys.exit(f"failed: {failed}" if failed else 0)
"""


def test_every_order_of_imports(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IN_COPIES, str(tmp_path / "store"), *ORDERS],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
