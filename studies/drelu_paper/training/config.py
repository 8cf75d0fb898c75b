"""How to train."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from dreluop.adaptive.attacks.checks import at_least_one

Method = Literal["natural", "at", "trades"]


@dataclass(frozen=True)
class TrainingConfig:
    """How to train. The defaults are the paper's, but for cap_lr (its single rate, 1e-3, takes more steps).

    Attributes:
        epochs: at most this many passes over the training set.
        balancer: weight of ``sum m^2`` in loss (1).
        lr, cap_lr: Adam's learning rate for the weights and for the caps.
        batch_size: samples per step, over all processes; a last, smaller batch is used too.
        plateau_factor, plateau_patience: of ReduceLROnPlateau on the total validation loss.
        stop_patience: epochs without a lower total validation loss before training stops; None: never.
        seed: of the order of the samples and of the attacks made while training.
        method: ``"natural"``; ``"at"``, cross-entropy on PGD examples (Madry et al., 2018); ``"trades"``, cross-entropy
            plus beta times the divergence to the output on examples that maximize it (Zhang et al., 2019).
        beta: of TRADES.
        eps, attack_steps: radius of the L-infinity ball and steps of the examples of "at" and "trades"; each step has
            the length 2.5 eps / attack_steps.
        amp: autocast the forward pass to this dtype; float16 scales the loss.
        compile: run the model through torch.compile.
    """

    epochs: int = 2000
    balancer: float = 1.0
    lr: float = 1e-3
    cap_lr: float = 1e-2
    batch_size: int = 32
    plateau_factor: float = 0.5
    plateau_patience: int = 5
    stop_patience: int | None = 10
    seed: int = 0
    method: Method = "natural"
    beta: float = 1.0
    eps: float = 0.1
    attack_steps: int = 10
    amp: Literal["off", "bfloat16", "float16"] = "off"
    compile: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "attack_steps"):
            at_least_one(name, getattr(self, name))
        stop = self.stop_patience
        for name, right, expected in (
            ("lr", 0 < self.lr < math.inf, "a finite number > 0"),
            ("cap_lr", 0 < self.cap_lr < math.inf, "a finite number > 0"),
            ("plateau_factor", 0 < self.plateau_factor < 1, "a number above 0 and below 1"),
            ("plateau_patience", self.plateau_patience >= 0, "at least 0"),
            ("eps", 0 <= self.eps < math.inf, "a finite number >= 0"),
            ("beta", 0 <= self.beta < math.inf, "a finite number >= 0"),
            ("stop_patience", stop is None or stop >= 1, "at least 1, or None"),
            ("method", self.method in ("natural", "at", "trades"), "natural, at or trades"),
            ("amp", self.amp in ("off", "bfloat16", "float16"), "off, bfloat16 or float16"),
        ):
            if not right:
                raise ValueError(f"{name}: got {getattr(self, name)!r}; expected {expected}")
