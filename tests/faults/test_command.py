"""The command reads a file, names what is wrong in it, and makes the curve."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dreluop.cli import sources
from dreluop.faults import command, fault_curve

MODULE = """
import torch
from torch import nn

def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))

def data():
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return x, network()(x).argmax(1)

number = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "faulty_net.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def write(folder: Path, text: str) -> Path:
    path = folder / "curve.toml"
    path.write_text(text)
    return path


USUAL = 'model = "faulty_net:network"\ndata = "faulty_net:data"\nrates = [1e-4, 1e-2]\ntrials = 3\n'


@pytest.mark.parametrize("protect", [False, True])
def test_curve(folder: Path, protect: bool, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("pandas")
    pytest.importorskip("matplotlib")
    extra = (
        f'records = "found.jsonl"\npicture = "curve.png"\nprotect_weights = {str(protect).lower()}\nbatch_size = 7\n'
    )
    assert command.main(["curve", str(write(folder, USUAL + extra))]) == 0
    printed = capsys.readouterr().out
    assert "without faults: 1.0000" in printed and "drawn: curve.png" in printed
    assert (folder / "curve.png").stat().st_size > 1000
    assert len((folder / "found.jsonl").read_text().splitlines()) == 1 + 2 * 3
    means = [float(line.split()[2]) for line in printed.splitlines() if line.strip().startswith("0.0")]
    model, (x, y) = (
        sources.model_of("model", "faulty_net:network"),
        sources.inputs_and_labels("data", "faulty_net:data"),
    )
    if protect:
        assert min(means) > 0.8
    else:
        want = fault_curve(model, lambda m: m(x), [1e-4, 1e-2], 3, labels=y, progress=False)
        assert means == pytest.approx(want["mean"].tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model = 1", '"data" is missing'),
        (USUAL + "trial = 2", 'got the key "trial"; expected model, .*did you mean "trials"'),
        (USUAL + "x = [", "Unclosed|Invalid|end of document"),
        (USUAL + 'dtype = "float8"', 'dtype: got "float8"; expected float64, float32, float16, bfloat16, int8'),
        (USUAL.replace("faulty_net:network", "faulty_net"), 'model: got "faulty_net"; expected "module:function"'),
        (USUAL.replace("faulty_net:network", "no_such:network"), 'model: there is no module "no_such"'),
        (USUAL.replace("faulty_net:network", "faulty_net:none"), 'model: "faulty_net" has no function "none"'),
        (
            USUAL.replace("faulty_net:network", "faulty_net:data"),
            "gave tuple; expected a torch.nn.Module",
        ),
        (USUAL.replace('"faulty_net:network"', "3"), 'model: got int; expected "module:function"'),
        (USUAL.replace("faulty_net:data", "faulty_net:network"), "gave Sequential; expected two tensors"),
        (USUAL.replace("faulty_net:data", "no.npz"), 'data: there is no file "no.npz"'),
        (USUAL.replace("[1e-4, 1e-2]", "[2.0]"), "rates: got"),
        (USUAL + 'dtype = "bfloat16"\nprotect_weights = true', "protect_weights: not with dtype"),
    ],
)
def test_what_is_wrong_is_named(folder: Path, text: str, words: str, capsys: pytest.CaptureFixture[str]):
    if "rates" in words:
        pytest.importorskip("pandas")
    assert command.main(["curve", str(write(folder, text))]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    with pytest.raises(ValueError, match=words):
        raise ValueError(error)


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert command.main(["curve", str(tmp_path / "none.toml")]) == 2
    assert "No such file" in capsys.readouterr().err


def test_the_example_in_the_help_has_only_known_keys(folder: Path):
    assert set(command.read(write(folder, command.EXAMPLE))) <= set(command.KEYS)


def test_arrays(tmp_path: Path):
    x, y = np.random.rand(5, 2).astype(np.float32), np.arange(5)
    np.savez(tmp_path / "data.npz", x=x, y=y)
    found, labels = sources.inputs_and_labels("data", str(tmp_path / "data.npz"))
    assert torch.equal(found, torch.from_numpy(x)) and labels.tolist() == [0, 1, 2, 3, 4]
    np.savez(tmp_path / "other.npz", images=x)
    with pytest.raises(ValueError, match="has the arrays images; expected x and y"):
        sources.inputs_and_labels("data", str(tmp_path / "other.npz"))
    np.savez(tmp_path / "short.npz", x=x, y=y[:3])
    with pytest.raises(ValueError, match=r"gave shapes \(5, 2\) and \(3,\)"):
        sources.inputs_and_labels("data", str(tmp_path / "short.npz"))


def test_an_error_inside_a_module_is_its_own(folder: Path):
    (folder / "broken_net.py").write_text("import no_such_thing\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_thing"):
        sources.model_of("model", "broken_net:network")
    assert isinstance(sources.model_of("model", "faulty_net:network"), nn.Module)
