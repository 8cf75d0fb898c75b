"""docs/training.md: its examples run, its table of keys is what the modules have; whole modules in files."""

from __future__ import annotations

import io
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dreluop import BatchNormDReLU2d, DReLU, LazyDReLU, SReLU
from dreluop.surgery import HeadedLinear, insert_head, insert_stem, replace_activations
from tests.support.optional import torchvision_or_skip
from tests.surgery.models import ResidualBlock

GUIDE = Path(__file__).parents[2] / "docs" / "training.md"


def test_the_examples_run(capsys: pytest.CaptureFixture[str]) -> None:
    first, flat, second = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(first, str(GUIDE), "exec"), names)
    cap = names["model"][3].cap.detach()
    # One Adam step: every cap fell by its learning rate, since the penalty pulls and nothing holds.
    assert ((5.0 - cap) - 1e-2).abs().max() < 1e-4
    assert abs(names["total"] - names["loss"] - 1e-2 * cap.square().sum()) < 1e-3
    with torch.no_grad():
        names["model"][3].cap.fill_(-1.0)
    names["optimizer"].step()
    assert (cap == torch.tensor(1e-3)).all()
    torchvision_or_skip()
    exec(compile(flat, str(GUIDE), "exec"), names)
    assert [len(group["params"]) for group in names["optimizer"].param_groups] == [161, 1]
    exec(compile(second, str(GUIDE), "exec"), names)
    assert capsys.readouterr().out == "4 keys loaded\n1 not in the state, values kept: caps 1.cap\n"
    assert (names["network"][1].cap < 5).all()


ROWS = dict(re.findall(r"^\| `(.*?)` \| (`.*) \|$", GUIDE.read_text().partition("## Keys of")[2], re.MULTILINE))


def test_the_table_has_every_module() -> None:
    assert len(ROWS) == 8
    for name in ("SReLU", "DReLU", "BatchNormDReLU2d", "insert_head", "insert_stem"):
        assert any(row.startswith(f"{name}(") for row in ROWS)


@pytest.mark.parametrize("row", ROWS)
def test_keys_and_shapes_of_a_state_dict(row: str) -> None:
    dense = nn.Sequential(nn.Flatten(), nn.Linear(128, 10))
    convolution = nn.Sequential(nn.Conv2d(3, 8, 3))
    modules = {"DReLU": DReLU, "SReLU": SReLU, "BatchNormDReLU2d": BatchNormDReLU2d}
    names = {**modules, "insert_head": insert_head, "insert_stem": insert_stem, "torch": torch}
    made = eval(row, {"dense": dense, "convolution": convolution, **names})
    state = {key: tuple(tensor.shape) for key, tensor in made.state_dict().items()}
    assert state == {key: eval(shape) for key, shape in re.findall(r"`(.*?)` (\(.*?\))", ROWS[row])}


def test_which_caps_are_parameters_and_which_keys_surgery_adds() -> None:
    assert [*dict(SReLU(1.0).named_buffers())] == ["cap"] == [*dict(DReLU().named_parameters())]
    assert [*LazyDReLU("channel").state_dict()] == ["cap"]
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU())
    old = list(model.state_dict())
    sites = replace_activations(model).sites
    assert sorted(model.state_dict()) == sorted([*old, *(f"{site.name}.cap" for site in sites)])


def saved(value: Any) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return file


def headed() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 4))
    insert_head(model)
    return model


CLASSES = [DReLU, SReLU, nn.Sequential, nn.Linear, nn.Flatten, HeadedLinear]
MODULES = {
    "DReLU": lambda: DReLU(6, init=0.5, save="mask"),
    "SReLU": lambda: SReLU(torch.rand(6)),
    "network": lambda: nn.Sequential(nn.Linear(6, 6), DReLU((6,), init=0.5), nn.Linear(6, 4), SReLU(0.2)),
    "headed": headed,
}


@pytest.mark.parametrize("cap", [0.5, torch.tensor([0.5, 2.0])], ids=["number", "tensor"])
def test_a_pickle_without_what_an_srelu_was_made_of(cap: float | Tensor) -> None:
    old = SReLU(cap)
    want = old.cap.clone()
    del old._made_of
    loaded = torch.load(saved(old), weights_only=False)
    with torch.no_grad():
        loaded.cap.zero_()
    loaded.reset_parameters()
    assert torch.equal(loaded.cap, want)


@pytest.mark.parametrize("name", MODULES)
def test_whole_modules_with_weights_only(name: str) -> None:
    module, x = MODULES[name](), torch.randn(3, 6)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        torch.load(saved(module), weights_only=True)
    with torch.serialization.safe_globals(CLASSES):
        baseline = torch.load(saved(module), weights_only=True)
    assert repr(baseline) == repr(module)
    assert torch.equal(baseline(x), module(x))


def test_a_forward_that_surgery_wrote_is_code_and_not_loaded_with_weights_only() -> None:
    model = nn.Sequential(ResidualBlock(4, inside=3, inplace=True))
    replace_activations(model)
    needed = torch.serialization.get_unsafe_globals_in_checkpoint(saved(model))
    assert "dreluop.surgery.classes._new" in needed
    allowed = [getattr(__import__(name.rpartition(".")[0], fromlist=["_"]), name.rpartition(".")[2]) for name in needed]
    with torch.serialization.safe_globals(allowed), pytest.raises(pickle.UnpicklingError):
        torch.load(saved(model), weights_only=True)
