from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from dreluop.adaptive.attacks import input_gradient, zero_gradient_share
from studies.drelu_paper.data import Digits, Split
from studies.drelu_paper.models import dense_drelu, dense_relu
from studies.drelu_paper.training import CAP_FLOOR, TrainingConfig, history, total_loss, train

# Below float32's resolution: the weights stay, so the cross-entropy stays.
FROZEN = 1e-30


def run(model, few: Digits, **options):
    return train(model, few.train, few.validation, TrainingConfig(**{"epochs": 2, **options}))


def test_loss_is_equation_1(few: Digits):
    model = dense_drelu(0, init=0.5)
    x, y = few.train
    expected = F.cross_entropy(model(x), y) + 0.3 * 128 * 0.25
    torch.testing.assert_close(total_loss(model, x, y, 0.3), expected)
    torch.testing.assert_close(total_loss(dense_relu(0), x, y, 0.3), F.cross_entropy(dense_relu(0)(x), y))


def test_caps_have_their_own_learning_rate(few: Digits):
    # Adam's first step has the size of the learning rate, whatever the gradient.
    model, before = dense_drelu(0), dense_drelu(0)
    run(model, few, epochs=1, batch_size=320, lr=1e-3, cap_lr=1e-2, balancer=1.0)
    step = (model.activation.cap - before.activation.cap).detach()
    torch.testing.assert_close(step, torch.full((128,), -1e-2), rtol=0.01, atol=0)
    assert (model.output.weight - before.output.weight).abs().max().item() == pytest.approx(1e-3, rel=0.01)


def test_training_learns_and_caps_fall(few: Digits):
    history = run(dense_drelu(0), few, epochs=4)
    accuracies, means = history.column("validation_accuracy"), history.column("cap_mean")
    assert accuracies[0] < 0.3
    assert accuracies[-1] > 0.6
    assert means == sorted(means, reverse=True)
    assert means[0] == 100
    assert means[-1] < 99.7


def test_history_of_the_untrained_state_and_every_epoch(few: Digits):
    model = dense_drelu(0, init=0.5)
    history = run(model, few, epochs=2, balancer=0.1)
    assert len(history.records) == 3
    assert math.isnan(history.records[0].train_loss)
    last, cap = history.records[-1], model.activation.cap.detach()
    assert (last.cap_mean, last.cap_min, last.cap_max) == (cap.mean().item(), cap.min().item(), cap.max().item())
    assert last.cap_min < last.cap_mean < last.cap_max
    with torch.no_grad():
        assert last.validation_loss == pytest.approx(total_loss(model, *few.validation, 0.1).item())
        correct = model(few.validation.x).argmax(1) == few.validation.y
    assert last.validation_accuracy == pytest.approx(correct.float().mean().item())


def test_train_loss_is_the_mean_over_samples(few: Digits):
    # 320 samples in batches of 300 and 20.
    history = run(dense_relu(0), few, epochs=1, batch_size=300, lr=FROZEN)
    expected = F.cross_entropy(dense_relu(0)(few.train.x), few.train.y).item()
    assert history.records[1].train_loss == pytest.approx(expected, rel=1e-5)


def test_balancer_0_leaves_the_caps_and_equals_the_relu_baseline(few: Digits):
    drelu, relu = dense_drelu(0), dense_relu(0)
    run(drelu, few, balancer=0.0)
    run(relu, few)
    assert (drelu.activation.cap == 100).all()
    assert all(torch.equal(value, drelu.state_dict()[name]) for name, value in relu.state_dict().items())


def test_same_seed_same_history(few: Digits):
    first, again, other = (run(dense_drelu(0), few, seed=seed).records[-1] for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_caps_never_fall_below_the_floor(few: Digits):
    model = dense_drelu(0, init=0.02)
    history = run(model, few, epochs=2, cap_lr=0.1, balancer=100.0)
    assert all(value >= CAP_FLOOR for value in history.column("cap_min")[1:])
    assert history.records[-1].cap_min == pytest.approx(CAP_FLOOR)


def test_caps_at_the_floor_can_rise_again(few: Digits):
    # A floor of 0 would fail: there a cap has no gradient.
    model = dense_drelu(0, init=CAP_FLOOR)
    run(model, few, epochs=1, balancer=0.0, cap_lr=1e-2)
    assert (model.activation.cap > 2 * CAP_FLOOR).float().mean() > 0.5


def test_early_stopping_counts_epochs_without_improvement(few: Digits):
    history = run(dense_relu(0), few, epochs=9, lr=FROZEN, stop_patience=3)
    assert len(history.records) == 1 + 1 + 3


def test_early_stopping_watches_the_total_loss(few: Digits):
    # The cross-entropy stays where it is, as in the test above, but the falling caps lower the total.
    history = run(dense_drelu(0), few, epochs=6, lr=FROZEN, stop_patience=1)
    assert len(history.records) == 1 + 6


def test_no_early_stopping_when_patience_is_none(few: Digits):
    assert len(run(dense_relu(0), few, epochs=4, lr=FROZEN, stop_patience=None).records) == 1 + 4


def test_plateau_watches_the_total_loss_and_lowers_both_rates(few: Digits, monkeypatch):
    seen, optimizers = [], []

    class Spy(torch.optim.lr_scheduler.ReduceLROnPlateau):
        def __init__(self, optimizer, **options):
            assert options == {"factor": 0.5, "patience": 1}
            optimizers.append(optimizer)
            super().__init__(optimizer, **options)

        def step(self, value):
            seen.append(value)
            super().step(value)

    monkeypatch.setattr(torch.optim.lr_scheduler, "ReduceLROnPlateau", Spy)
    history = run(dense_drelu(0), few, epochs=3, plateau_patience=1, lr=1e-7, balancer=0.0)
    assert seen == history.column("validation_loss")[1:]
    assert [group["lr"] for group in optimizers[0].param_groups] == [0.5e-7, 0.5e-2]


def test_a_loss_that_is_not_finite_stops_training(few: Digits):
    bad = Split(torch.full_like(few.train.x, torch.nan), few.train.y)
    with pytest.raises(RuntimeError, match="the training loss is nan"):
        train(dense_relu(0), bad, few.validation, TrainingConfig(epochs=1))


def test_gradients_of_validation_are_taken_in_parts(few: Digits, monkeypatch: pytest.MonkeyPatch):
    model, sizes = dense_drelu(0, init=1e-3), []

    def seen(model, x, y):
        sizes.append(len(x))
        return input_gradient(model, x, y)

    monkeypatch.setattr(history, "input_gradient", seen)
    monkeypatch.setattr(history, "GRADIENT_BATCH", 30)
    record = history.record_of(model, [few.validation], 0.0, 0.0)
    assert max(sizes) == 30
    assert sum(sizes) == len(few.validation.x)
    share = zero_gradient_share(model, *few.validation)
    assert 0 < share < 1
    assert record.validation_zero_gradient == pytest.approx(share)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs: got 0; expected at least 1"),
        ({"batch_size": 0}, "batch_size: got 0; expected at least 1"),
        ({"lr": 0.0}, "lr: got 0.0; expected a finite number > 0"),
        ({"cap_lr": math.inf}, "cap_lr: got inf; expected a finite number > 0"),
        ({"stop_patience": 0}, "stop_patience: got 0; expected at least 1, or None"),
    ],
)
def test_bad_configurations(options, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**options)
