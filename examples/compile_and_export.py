"""Compile a capped network, and export it: `python examples/compile_and_export.py`.

docs/compile.md says what torch.compile sees of an activation, docs/export.md covers AOTInductor and ONNX too.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import nn

import dreluop


def main() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), dreluop.DReLU(32, init=0.5), nn.Linear(32, 4))
    x = torch.randn(8, 16)

    # Fused with its neighbors by default.
    compiled = torch.compile(model, fullgraph=True)
    loss = compiled(x).square().mean() + dreluop.cap_penalty(model, balancer=1e-2)
    loss.backward()
    print(f"compiled: loss {loss.item():.4f}, mean gradient of the caps {model[1].cap.grad.mean():.4f}")
    torch.testing.assert_close(compiled(x), model(x))

    # As one call of our kernels, for comparison. The choice is made when the function is first called.
    with dreluop.compile_mode("opaque"):
        opaque = torch.compile(model, fullgraph=True)
        torch.testing.assert_close(opaque(x), model(x))

    export(model.eval(), x)


def export(model: nn.Module, x: torch.Tensor) -> None:
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    # This program calls the operators of dreluop. The next one holds torch's own, and runs without dreluop.
    tables = {**torch.export.default_decompositions(), **dreluop.ops.decompositions()}
    plain = program.run_decompositions(tables)
    assert "dreluop" in str(program.graph) and "dreluop" not in str(plain.graph)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt2"
        torch.export.save(plain, path)
        loaded = torch.export.load(path).module()
    for batch in (x, torch.randn(3, 16)):
        torch.testing.assert_close(loaded(batch), model(batch))
    print("exported: the program from the file gives the model's outputs, for any batch size")


if __name__ == "__main__":
    main()
