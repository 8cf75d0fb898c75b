"""Adversarial training, TRADES, AMP, torch.compile; breaks; several processes."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from dreluop.adaptive.attacks import accuracy, pgd
from studies.drelu_paper.data import Digits, Split
from studies.drelu_paper.models import dense_drelu, dense_relu
from studies.drelu_paper.training import History, TrainingConfig, objectives, train
from studies.drelu_paper.training.objectives import training_loss
from studies.drelu_paper.training.parallel import Processes
from tests.support.patience import PATIENCE

EPS = 0.1


def run(model: nn.Module, few: Digits, file: Path | None = None, **options) -> History:
    config = TrainingConfig(**{"epochs": 2, "eps": EPS, "attack_steps": 3, **options})
    return train(model, few.train, few.validation, config, file=file, progress=False)


@pytest.mark.parametrize("method", ["at", "trades"])
def test_robust_training_makes_robust(method: str, few: Digits):
    plain, robust = dense_relu(0), dense_relu(0)
    run(plain, few, epochs=10)
    run(robust, few, epochs=10, method=method, beta=6.0)
    x, y = few.test
    assert accuracy(robust, pgd(robust, x, y, EPS), y) > accuracy(plain, pgd(plain, x, y, EPS), y) + 0.15


def test_adversarial_training_s_loss_is_that_of_its_examples(few: Digits):
    model, (x, y) = dense_relu(0), few.test
    config = TrainingConfig(method="at", eps=EPS, attack_steps=4)
    expected = F.cross_entropy(model(pgd(model, x, y, EPS, 4, 2.5 * EPS / 4, seed=7)), y)
    torch.testing.assert_close(training_loss(model, model, x, y, config, seed=7), expected)


def test_trades_is_cross_entropy_and_beta_times_the_divergence(few: Digits, monkeypatch: pytest.MonkeyPatch):
    model, (x, y) = dense_relu(0), few.test
    attacked = (x + 0.05).clamp(0, 1)
    monkeypatch.setattr(objectives, "_most_divergent", lambda *_: attacked)
    p, q = model(x).softmax(1), model(attacked).softmax(1)
    divergence = (p * (p / q).log()).sum(1).mean()
    for beta in (0.0, 6.0):
        found = training_loss(model, model, x, y, TrainingConfig(method="trades", beta=beta), seed=0)
        torch.testing.assert_close(found, F.cross_entropy(model(x), y) + beta * divergence)


def test_the_examples_of_trades_diverge_within_the_ball(trained, few: Digits):
    x = few.test.x
    step = 2.5 * EPS / 5
    found = objectives._most_divergent(trained, x, EPS, 5, step, seed=0)
    assert (found - x).abs().max() <= EPS + 1e-6
    assert 0 <= found.min() <= found.max() <= 1
    noise = (x + EPS * (2 * torch.rand(x.shape) - 1)).clamp(0, 1)
    clean = trained(x).detach()
    assert objectives._divergence(clean, trained(found)) > 5 * objectives._divergence(clean, trained(noise))
    assert trained.training
    assert all(parameter.requires_grad for parameter in trained.parameters())


def test_the_penalty_is_part_of_every_method(few: Digits):
    for method in ("natural", "at", "trades"):
        history = run(dense_drelu(0), few, epochs=1, method=method, balancer=1.0)
        assert history.column("cap_mean")[-1] < 100


@pytest.mark.parametrize("options", [{"amp": "bfloat16"}, {"amp": "float16"}, {"compile": True}], ids=str)
def test_amp_and_compile_train_as_well(options: dict[str, object], few: Digits, monkeypatch: pytest.MonkeyPatch):
    # What inductor makes of such a network is for tests/compile.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    plain, other = dense_drelu(0, init=2.0), dense_drelu(0, init=2.0)
    expected = run(plain, few, epochs=3, balancer=1e-2).records[-1]
    found = run(other, few, epochs=3, balancer=1e-2, **options).records[-1]
    assert other.activation.cap.dtype == torch.float32
    assert found.validation_accuracy == pytest.approx(expected.validation_accuracy, abs=0.08)
    assert found.cap_mean == pytest.approx(expected.cap_mean, rel=0.02)


@pytest.mark.parametrize("method", ["natural", "trades"])
def test_a_killed_run_goes_on_to_the_same_end(method: str, few: Digits, tmp_path: Path, monkeypatch):
    options = {"epochs": 4, "balancer": 0.1, "method": method, "plateau_patience": 1}
    whole, broken = dense_drelu(0, init=2.0), dense_drelu(0, init=2.0)
    expected = run(whole, few, **options)
    file = tmp_path / "run.pt"
    # Killed in the third epoch, after some steps.
    calls, original = [], objectives.training_loss

    def killed(*args):
        calls.append(1)
        if len(calls) == 25:
            raise KeyboardInterrupt
        return original(*args)

    from studies.drelu_paper.training import loop  # noqa: PLC0415

    monkeypatch.setattr(loop, "training_loss", killed)
    with pytest.raises(KeyboardInterrupt):
        run(broken, few, file, **options)
    monkeypatch.setattr(loop, "training_loss", original)
    again = dense_drelu(1, init=2.0)
    found = run(again, few, file, **options)
    assert [r.validation_loss for r in found.records] == [r.validation_loss for r in expected.records]
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())
    # Done: the file gives the end at once.
    assert run(dense_drelu(2), few, file, **options).records[-1] == found.records[-1]


def test_early_stopping_goes_on_counting_after_a_break(few: Digits, tmp_path: Path):
    file = tmp_path / "run.pt"
    frozen = {"lr": 1e-30, "stop_patience": 3}
    assert len(run(dense_relu(0), few, file, epochs=9, **frozen).records) == 5
    assert len(run(dense_relu(0), few, file, epochs=9, **frozen).records) == 5


def test_a_checkpoint_of_another_configuration_is_refused(few: Digits, tmp_path: Path):
    file = tmp_path / "run.pt"
    run(dense_relu(0), few, file, epochs=1)
    with pytest.raises(ValueError, match="file: got a checkpoint of"):
        run(dense_relu(0), few, file, epochs=2)


def test_shares_of_a_batch_make_its_mean():
    x, y = torch.rand(13, 2), torch.arange(13)
    values = torch.rand(13)
    for world in (2, 3, 5, 16):
        parts = [Processes(rank, world).share(x, y, torch.device("cpu")) for rank in range(world)]
        mean = sum(weight * values[labels].mean() for _, labels, weight in parts) / world
        torch.testing.assert_close(mean, values.mean())
        assert sorted(int(one) for _, labels, weight in parts if weight for one in labels) == list(range(13))


SCRIPT = """
import sys, torch
from dataclasses import replace
from pathlib import Path
from torch import nn
from dreluop import DReLU
from studies.drelu_paper import jobs
from studies.drelu_paper.data import Split, load_digits
from studies.drelu_paper.jobs import Folders, Job, do
from studies.drelu_paper.models import dense_drelu
from studies.drelu_paper.training import TrainingConfig, loop, train
from studies.drelu_paper.training.parallel import of_torchrun
torch.set_num_threads(1)

def compare(processes):
    parts = [Split(s.x[:n], s.y[:n]) for s, n in zip(load_digits(), (319, 100, 200))]
    model = dense_drelu(0, init=2.0)
    history = train(model, parts[0], parts[1], TrainingConfig(epochs=2, balancer=0.1), processes=processes,
                    progress=False)
    alike = model.state_dict(), history.column("train_loss"), history.column("validation_loss")

    record_of = loop.record_of

    def unlike(model, batches, balancer, train_loss):
        # As by rounding, or by running statistics of its own: only the first process still improves.
        found = record_of(model, batches, balancer, train_loss)
        return replace(found, validation_loss=-train_loss if processes.rank else train_loss)

    loop.record_of = unlike
    x, y = torch.rand(24, 1, 4, 4), torch.arange(24) % 10
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), DReLU(num_parameters=4), nn.Flatten(), nn.Linear(16, 10)
    )
    found = {}
    for method in ("natural", "at", "trades"):
        config = TrainingConfig(epochs=3, stop_patience=1, batch_size=8, method=method, attack_steps=1)
        found[method] = train(model, Split(x, y), Split(x, y), config, processes=processes, progress=False)

    # The first process fails at evaluating; the other must not wait for it, nor take a later step for its end.
    jobs._evaluate = fails
    try:
        do(Job("evaluate", None), Folders(Path(), Path()), processes)
    except ValueError:
        assert processes.rank == 0
    losses = {name: history.column("validation_loss")[1:] for name, history in found.items()}
    assert processes.of_first(losses) == losses
    if processes.rank == 0:
        torch.save({"alike": alike, "unlike": losses}, sys.argv[1])

def fails(*_):
    raise ValueError("no")

with of_torchrun() as processes:
    compare(processes)
"""


@pytest.fixture(scope="module")
def by_two_processes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two processes of torchrun found, which take seconds to start."""
    folder = tmp_path_factory.mktemp("processes")
    script, file = folder / "script.py", folder / "found.pt"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script, file]
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert ended.returncode == 0, ended.stderr
    return torch.load(file)


def test_two_processes_train_like_one(by_two_processes: dict[str, Any], digits: Digits):
    # 319 digits: the last batch of 31 does not divide. The penalty counts once, and so does every digit.
    parts = [Split(s.x[:n], s.y[:n]) for s, n in zip(digits, (319, 100, 200), strict=True)]
    model = dense_drelu(0, init=2.0)
    history = train(model, parts[0], parts[1], TrainingConfig(epochs=2, balancer=0.1), progress=False)
    two, *other = by_two_processes["alike"]
    for name, value in model.state_dict().items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=2e-4)
    for left, right in zip((history.column("train_loss"), history.column("validation_loss")), other, strict=True):
        torch.testing.assert_close(torch.tensor(right[1:]), torch.tensor(left[1:]), rtol=1e-4, atol=1e-5)


def test_processes_end_together(by_two_processes: dict[str, Any]):
    ended = {name: len(losses) for name, losses in by_two_processes["unlike"].items()}
    assert ended == {"natural": 3, "at": 3, "trades": 3}


def test_torchrun_is_needed_for_several_processes(monkeypatch: pytest.MonkeyPatch):
    from studies.drelu_paper.training.parallel import of_torchrun  # noqa: PLC0415

    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(RuntimeError, match="start with torchrun"), of_torchrun():
        pass
