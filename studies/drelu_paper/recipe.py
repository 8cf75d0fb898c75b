"""What is trained and how it is attacked: everything that decides a record, and names for it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any

from dreluop.adaptive import AttackBudget
from dreluop.adaptive.attacks.checks import at_least_one
from dreluop.adaptive.evaluation.budget import check_radii
from studies.drelu_paper import data
from studies.drelu_paper.training import TrainingConfig

# Of the attacks: raise it when they change, so that no record of older ones is taken for a new one.
REVISION = 2


@dataclass(frozen=True)
class DataRecipe:
    """Which data, as ``data.load`` takes it; ``train_limit`` takes only the first training samples, for trials.

    The file of generated images is beside the configurations, or in the folder of the data sets.
    """

    name: str = "digits"
    generated: str | None = None
    original_share: float | None = None
    train_limit: int | None = None
    augment: bool = False

    def check(self) -> None:
        """
        Raises:
            ValueError: what is asked for does not go together.
        """
        data.check(self.name, self.generated, self.original_share, self.augment)
        if self.train_limit is None:
            return
        at_least_one("train_limit", self.train_limit)
        if self.augment or self.generated is not None:
            raise ValueError(f"train_limit: got {self.train_limit} beside augment or generated; expected neither")


@dataclass(frozen=True)
class AttackSettings(AttackBudget):
    """How hard the first ``samples`` test inputs are attacked; eps and the L2 bound of 18 are the paper's for MNIST."""

    eps: float = 0.1
    samples: int = 500

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one("samples", self.samples)
        check_radii("eps", (self.eps,))
        if self.seed < 0:
            raise ValueError(f"seed: got {self.seed}; expected at least 0")

    @property
    def budget(self) -> AttackBudget:
        given = asdict(self)
        return AttackBudget(**{field.name: given[field.name] for field in fields(AttackBudget)})


@dataclass(frozen=True)
class Recipe:
    """How a model comes to its weights.

    Attributes:
        data: what it is trained on.
        model, place, head: the network and the layer that the paper adds, as ``models.build`` takes them.
        method: ``"natural"`` (ReLU), ``"drelu"``, ``"at"`` or ``"trades"`` (both with ReLU).
        seed: of the weights and of the order.
        training: how it is trained.
        init: first value of every cap.
        calibrate: the warm-up's epochs with the caps at ``init`` and balancer 0, after which every cap is set to the
            99 % quantile of what reaches it; None: caps start at ``init`` and fall from there.
        start: the model whose weights it starts from; None: fresh ones.
    """

    data: DataRecipe
    model: str
    method: str
    seed: int
    training: TrainingConfig
    place: str = "head"
    head: int = 128
    init: float = 100.0
    calibrate: int | None = None
    start: Recipe | None = None

    @property
    def has_caps(self) -> bool:
        return self.method == "drelu"

    @property
    def identity(self) -> str:
        """The same for equal recipes only."""
        return _hashed(self)

    @property
    def label(self) -> str:
        """The method as tables call it, without model and seed."""
        if self.method == "trades":
            return f"TRADES-{self.training.beta:g}"
        if not self.has_caps:
            return {"natural": "ReLU", "at": "AT"}[self.method]
        start = "" if self.calibrate is not None else f" from {self.init:g}"
        return f"D-ReLU {self.training.balancer:g}{start}"

    @property
    def name(self) -> str:
        """Readable, and unique."""
        place = "" if self.place == "head" else f"-{self.place}"
        label = self.label.lower().replace(" ", "-")
        return f"{self.data.name}-{self.model}{place}-{label}-s{self.seed}-{self.identity}"


@dataclass(frozen=True)
class Evaluated:
    """A model, the ReLU network whose adversarial inputs are tried on it (None: none are), and how it is attacked."""

    recipe: Recipe
    baseline: Recipe | None
    attacks: AttackSettings

    @property
    def name(self) -> str:
        """Of the record's file; another for another revision of the attacks."""
        return self.name_at(REVISION)

    def name_at(self, revision: int) -> str:
        """The name when the attacks were of that revision, 1 or later."""
        given = _non_defaults(self) if revision == 1 else {"revision": revision, "evaluated": _non_defaults(self)}
        return f"{self.recipe.name}-{_hashed(given)[:6]}"


def _hashed(value: Any) -> str:
    return hashlib.sha256(json.dumps(_non_defaults(value), sort_keys=True).encode()).hexdigest()[:10]


def _non_defaults(value: Any) -> Any:
    """What is not the default, so that a new option leaves the names of the runs without it."""
    if not is_dataclass(value):
        return value
    given = {field.name: getattr(value, field.name) for field in fields(value)}
    defaults = {field.name: field.default for field in fields(value)}
    return {name: _non_defaults(one) for name, one in given.items() if one != defaults[name]}
