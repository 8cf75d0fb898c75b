"""What the demo measures on the digits: the two networks, trained alike, then attacked."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from dreluop.adaptive import AttackBudget, Evaluation, evaluate
from dreluop.adaptive.attacks import accuracy, pgd
from dreluop.surgery import calibrate_caps
from studies.drelu_paper.data import Digits, Split
from studies.drelu_paper.models import DenseNetwork, dense_drelu, dense_relu
from studies.drelu_paper.training import EpochRecord, TrainingConfig, caps_of, train

EPS = 0.1
SEED = 0
BALANCER = 1.0
EPOCHS = 40
# With the caps at 100 the head is a plain ReLU; a few epochs give the calibration pre-activations worth measuring.
WARM_UP_EPOCHS = 2
CALIBRATION_SAMPLES = 512


@dataclass(frozen=True)
class TrainedNetwork:
    """A network after training.

    Attributes:
        name: how tables and pictures call it.
        model: the network.
        epochs: the epoch of each record; the end of the warm-up is there twice, before and after calibration.
        records: the state at those epochs.
        seconds: wall time of the training, calibration and validation included.
    """

    name: str
    model: DenseNetwork
    epochs: list[int]
    records: list[EpochRecord]
    seconds: float


@dataclass(frozen=True)
class Results:
    """The two networks, their evaluations on the test digits, and the accuracy of one on the other's PGD."""

    drelu: TrainedNetwork
    relu: TrainedNetwork
    drelu_evaluation: Evaluation
    relu_evaluation: Evaluation
    transferred: float


def run(digits: Digits, epochs: int = EPOCHS) -> Results:
    """Train both networks from the same weights, on the same batches, and attack them on the test digits.

    Args:
        digits: the data.
        epochs: of training, the warm-up included; more than ``WARM_UP_EPOCHS``.

    Raises:
        ValueError: epochs is too small.
    """
    if epochs <= WARM_UP_EPOCHS:
        raise ValueError(f"epochs: got {epochs}; expected more than the {WARM_UP_EPOCHS} of the warm-up")
    drelu = _train("D-ReLU", dense_drelu(SEED), digits, epochs)
    relu = _train("ReLU baseline", dense_relu(SEED), digits, epochs)
    x, y = digits.test
    return Results(
        drelu=drelu,
        relu=relu,
        drelu_evaluation=evaluated(drelu.model, digits.test),
        relu_evaluation=evaluated(relu.model, digits.test),
        transferred=accuracy(drelu.model, pgd(relu.model, x, y, EPS, seed=SEED), y),
    )


def evaluated(model: DenseNetwork, split: Split) -> Evaluation:
    """Accuracy, clean and under the two plain attacks, and the share of inputs with zero gradient."""
    budget = AttackBudget(batch_size=len(split.x), seed=SEED)
    return evaluate(model, split.x, split.y, EPS, attacks=("fgsm", "pgd"), budget=budget)


def _train(name: str, model: DenseNetwork, digits: Digits, epochs: int) -> TrainedNetwork:
    started = time.perf_counter()
    # Balancer 0 leaves the caps where they are; no early stop, so that both networks train equally long.
    warm_up = TrainingConfig(epochs=WARM_UP_EPOCHS, balancer=0.0, stop_patience=None, seed=SEED)
    before = train(model, digits.train, digits.validation, warm_up, f"{name}, warm-up")
    if caps_of(model):
        calibrate_caps(model, [digits.train.x[:CALIBRATION_SAMPLES]], progress=False)
    config = replace(warm_up, epochs=epochs - WARM_UP_EPOCHS, balancer=BALANCER, seed=SEED + 1)
    after = train(model, digits.train, digits.validation, config, name)
    return TrainedNetwork(
        name=name,
        model=model,
        epochs=[*range(WARM_UP_EPOCHS + 1), *range(WARM_UP_EPOCHS, epochs + 1)],
        records=before.records + after.records,
        seconds=time.perf_counter() - started,
    )
