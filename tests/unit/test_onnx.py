"""ONNX export: what onnxruntime computes is what the model computes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

import dreluop
from dreluop import DReLU, SReLU
from dreluop.onnx import translations
from dreluop.ops import schemas
from dreluop.surgery import insert_head, replace_activations
from tests.support.cases import dtype_id, special_values

pytestmark = pytest.mark.slow

TABLE = translations()


def exported(model: nn.Module, *inputs: Tensor, **options: Any) -> Any:
    """The ONNX model, for any batch size."""
    program = torch.onnx.export(
        model.eval(),
        inputs,
        dynamo=True,
        dynamic_shapes=[{0: torch.export.Dim.DYNAMIC} for _ in inputs],
        custom_translation_table=TABLE,
        verbose=False,
        **options,
    )
    assert program is not None
    return program


def run(program: Any, *inputs: Tensor) -> list[np.ndarray]:
    """What onnxruntime computes."""
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    feeds = {name: one.numpy() for name, one in zip(names, inputs, strict=True)}
    results: list[np.ndarray] = session.run(None, feeds)
    return results


def run_by_the_book(program: Any, *inputs: Tensor) -> list[np.ndarray]:
    """What onnx's reference evaluator computes: every node in its own type, where onnxruntime may take a wider one."""
    evaluator = ReferenceEvaluator(program.model_proto)
    arrays = [onnx_ir.tensor(one).numpy() for one in inputs]
    results: list[np.ndarray] = evaluator.run(None, dict(zip(evaluator.input_names, arrays, strict=True)))
    return results


def nodes(program: Any) -> list[str]:
    return [node.op_type for node in program.model.graph]


def assert_equal(got: np.ndarray, want: Tensor) -> None:
    """NaN equals NaN; the sign of a zero may be another."""
    expected = want.detach().numpy()
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(got, expected)


SHAPES = {"layer": 1, "channel": 3, "last": 5, "neuron": (3, 5)}
CAPS = torch.tensor([0.5, math.nan, -1.0, 0.0, -0.0, math.inf, 2.0])


def layer_of(granularity: str, **options: Any) -> DReLU:
    """Its caps are special values, but one cap alone is 0.5."""
    layer = DReLU(SHAPES[granularity], dim=-1 if granularity == "last" else 1, **options)
    with torch.no_grad():
        layer.cap.view(-1).copy_(CAPS[torch.arange(layer.cap.numel()) % len(CAPS)])
    return layer


def samples(dtype: torch.dtype) -> Tensor:
    """One sample of each special value, and of ties with the caps: (25, 3, 5)."""
    values = torch.cat([special_values(dtype), torch.tensor([0.25, 1.5, 3.0, -3.0]).to(dtype)])
    return values.view(-1, 1, 1).expand(-1, 3, 5).contiguous()


class Side(nn.Module):
    """Several activations of one input: an export takes a second, whatever its size."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [layer(x.clone()) for layer in self.layers]


def check(model: nn.Module, x: Tensor, batches: tuple[int, ...], **options: Any) -> list[str]:
    """Compare all results for several batch sizes; the names of the nodes."""
    program = exported(model, x[:4], **options)
    for batch in batches:
        for got, want in zip(run(program, x[:batch]), model(x[:batch]), strict=True):
            assert_equal(got, want)
    return nodes(program)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=dtype_id)
def test_every_granularity(dtype: torch.dtype) -> None:
    x = samples(dtype)
    names = check(Side(*map(layer_of, SHAPES)), x, (4, 1, len(x)))
    assert [name for name in names if name != "Identity"] == ["Min", "Max"] * 4


def test_options_and_fixed_caps() -> None:
    layers = {
        "inplace": layer_of("channel", inplace=True),
        "mask": layer_of("channel", save="mask"),
        "inplace_mask": layer_of("neuron", inplace=True, save="mask"),
        "fixed": SReLU(0.5),
        "fixed_channel": SReLU(torch.tensor([0.5, 1.0, 2.0])),
        "fixed_scalar": SReLU(torch.tensor(0.5)),
        "nan": SReLU(math.nan),
        "negative": SReLU(-1.0),
        "zero": SReLU(0.0),
        "infinite": SReLU(math.inf),
        "half_caps": layer_of("channel").half(),
        "above": layer_of("channel", above="zero"),
        "zeroed_nan": SReLU(math.nan, nan="zero"),
        "above_nan": layer_of("neuron", above="zero", nan="zero", save="mask"),
    }
    x = samples(torch.float32)
    check(Side(*layers.values()), x, (len(x),))


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_operators_of_a_chosen_backend(backend: Any) -> None:
    if backend not in dreluop.available_backends("cpu"):
        pytest.skip(f"{backend} does not serve the CPU here")
    model, x = layer_of("channel"), samples(torch.float32)
    with dreluop.use_backend(backend):
        program = exported(model, x[:4])
    assert_equal(run(program, x)[0], model(x))


def test_every_overload_is_translated() -> None:
    names = {name for name in schemas.SCHEMAS if name in ("capped_relu", "capped_relu_with_aux", "cap_penalty")}
    assert {str(op) for op in TABLE} == {
        f"dreluop.{name}.{which or 'default'}" for name in names for which in schemas.overloads_of(name)
    }
    assert translations() is not TABLE


def test_bfloat16_is_right_where_a_runtime_has_it() -> None:
    # onnxruntime's CPU provider has no Min for it, onnx's reference evaluator does.
    model, x = nn.Sequential(layer_of("neuron")), samples(torch.bfloat16)
    (got,) = run_by_the_book(exported(model, x[:4]), x)
    np.testing.assert_array_equal(got.astype(np.float32), model(x).detach().float().numpy())


class Fused(nn.Module):
    """Bias, residual and penalties."""

    def __init__(self, granularity: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.cap = DReLU(SHAPES[granularity], init=0.7, dim=-1 if granularity == "last" else 1)
        shape = {"last": (5,), "neuron": (3, 5)}.get(granularity, (3,))
        self.bias = nn.Parameter(torch.linspace(-1, 1, math.prod(shape)).view(shape).to(dtype))

    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, ...]:
        y = self.cap(x, residual, bias=self.bias)
        z, penalty = dreluop.capped_relu(x * 2, self.cap.cap, dim=self.cap.dim, balancer=0.3, residual=residual)
        only_bias = self.cap(x, bias=self.bias)
        return y, z, only_bias, penalty, dreluop.cap_penalty(self, 0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=dtype_id)
def test_bias_residual_and_penalties(dtype: torch.dtype) -> None:
    class All(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList(Fused(granularity, dtype) for granularity in SHAPES)

        def forward(self, x: Tensor, residual: Tensor) -> list[tuple[Tensor, ...]]:
            return [part(x, residual) for part in self.parts]

    model = All()
    x, residual = torch.randn(2, 6, 3, 5).to(dtype)
    program = exported(model, x[:4], residual[:4])
    wanted = [one for part in model(x, residual) for one in part]
    for results in (run(program, x, residual), run_by_the_book(program, x, residual)):
        for got, want in zip(results, wanted, strict=True):
            if want.ndim:
                assert_equal(got, want)
            else:
                np.testing.assert_allclose(got, want.item(), rtol=1e-6)
                assert got.dtype == np.float32 and got.shape == ()


def test_penalty_of_double_caps_is_double() -> None:
    class Penalty(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.narrow = DReLU(3).double(), DReLU(2, init=1.0)

        def forward(self, x: Tensor) -> Tensor:
            return x + dreluop.cap_penalty(self, 0.5)

    model, x = Penalty(), torch.zeros(3).double()
    with torch.no_grad():
        model.wide.cap.fill_(0.1)
    (got,) = run(exported(model, x[:2]), x)
    np.testing.assert_allclose(got, 0.5 * (3 * 0.01 + 2), rtol=1e-14)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(x)
        out: Tensor = self.relu(self.norm(self.convolution(x)) + x)
        return out


def test_a_network_after_surgery() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), Block(), nn.ReLU6(), nn.Flatten(), nn.Linear(6 * 25, 7))
    insert_head(model)
    assert len(replace_activations(model, init=0.5).replaced) == 3
    x = torch.randn(9, 3, 7, 7)
    program = exported(model, x[:2])
    assert not [name for name in nodes(program) if name in ("Relu", "Where", "Transpose")]
    for batch in (1, 9):
        (got,) = run(program, x[:batch])
        np.testing.assert_allclose(got, model(x[:batch]).detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["Min", "Max", "Clip"])
def test_what_onnxruntime_makes_of_nan(name: str) -> None:
    """docs/export.md tells it; only a Clip loses one, that of its bound."""
    inputs, zero = ["x", "bound"], numpy_helper.from_array(np.zeros((), np.float32), "zero")
    node = helper.make_node(name, ["x", "zero", "bound"] if name == "Clip" else inputs, ["y"])
    values = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [20])]
    values.append(helper.make_tensor_value_info("bound", TensorProto.FLOAT, []))
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [20])
    graph = helper.make_graph([node], "graph", values, [result], [zero] if name == "Clip" else [])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.tile(np.array([np.nan, 1, -1, 3], np.float32), 5)
    for bound in (2.0, np.nan):
        (y,) = session.run(None, {"x": x, "bound": np.array(bound, np.float32)})
        expected = np.isnan(x) | (np.isnan(bound) & (name != "Clip"))
        np.testing.assert_array_equal(np.isnan(y), expected)


def test_an_operator_without_translation_is_reported() -> None:
    class Counts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return dreluop.saturation(x, 1.0).inside

    with pytest.raises(
        torch.onnx.errors.OnnxExporterError, match=r"No ONNX function found for .*dreluop\.cap_saturation"
    ):
        exported(Counts(), torch.randn(2, 3))


def test_the_exporter_based_on_torchscript_refuses() -> None:
    with pytest.raises(RuntimeError, match="an operator with unrecognized namespace dreluop::capped_relu"):
        torch.onnx.export(nn.Sequential(DReLU(3)).eval(), (torch.randn(2, 3),), "unused.onnx", dynamo=False)
