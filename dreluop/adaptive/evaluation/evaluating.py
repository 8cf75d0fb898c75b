"""Every column of a model: the paper's attacks, the adaptive worst, the share of inputs without a gradient."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dreluop.adaptive.attacks import frozen, zero_gradient_share
from dreluop.adaptive.attacks.carlini import carlini_wagner
from dreluop.adaptive.evaluation.attackable import attackable
from dreluop.adaptive.evaluation.budget import AttackSettings
from dreluop.adaptive.evaluation.caps import CapFacts, cap_facts
from dreluop.adaptive.evaluation.columns import (
    PAPER,
    Attack,
    adaptive_attacks,
    blind_share,
    l2_attack,
    paper_attacks,
    with_widths,
)
from studies.drelu_paper.data import Split
from studies.drelu_paper.training import checkpoint

Report = Callable[[str], None]

# A share of inputs without any gradient above which attacks say nothing about a model.
BLIND = 0.05

# The adaptive attack in L2, at the smallest of ``cw_bounds``.
L2 = "margin_l2"


@dataclass(frozen=True)
class Evaluation:
    """What a model is worth at ``settings.eps``. Shares in [0, 1]; accuracy per attack, over the attacked inputs.

    Attributes:
        accuracy: ``clean``, then by attack.
        paper_worst: accuracy that is left when each input is given the paper's worst L-infinity attack for it.
        worst: the same over all L-infinity attacks, those that know of the caps too.
        zero_gradient: share of the inputs whose loss has an exactly zero gradient.
        blind: share of the inputs on which the adaptive attacks have an exactly zero gradient too. Above ``BLIND``,
            ``worst`` is a loose upper bound only: something in the model hides its gradient, and no surrogate
            reaches it.
        caps: None for a model without capped modules.
        cw: accuracy under CW-L2 within each of the L2 bounds, by the bound; cw_median: of what it found.
        l2_worst: accuracy within the smallest of the bounds under CW-L2 and the adaptive attack in L2; None without.
        bounds: for each radius of the sweep ``apgd_ce``, the paper's attack, and ``worst``, over it and the adaptive
            attacks (without Square).
        seconds, cpu_seconds: of each attack.
    """

    samples: int
    eps: float
    accuracy: dict[str, float]
    paper_worst: float
    worst: float
    zero_gradient: float
    blind: float
    caps: CapFacts | None
    cw: dict[str, float]
    cw_median: float | None
    l2_worst: float | None
    bounds: dict[str, dict[str, float]]
    seconds: dict[str, float]
    cpu_seconds: dict[str, float]


@dataclass
class _Found:
    """What is kept in the file between attacks: who was still right, and the times."""

    right: dict[str, Tensor] = field(default_factory=dict)
    distances: Tensor | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    cpu_seconds: dict[str, float] = field(default_factory=dict)


def evaluate(
    model: nn.Module,
    baseline: nn.Module | None,
    test: Split,
    measured_on: Tensor,
    settings: AttackSettings,
    *,
    file: Path | None = None,
    report: Report = lambda name: None,
) -> Evaluation:
    """Attack the model on the test inputs in every way that is known here.

    Args:
        model: gives logits of shape (N, classes).
        baseline: a ReLU network of its own training, whose adversarial inputs are tried on the model; None: not tried.
        test: images in [0, 1], shape (N, C, H, W), and labels, on the model's device; the first ``settings.samples``
            are attacked.
        measured_on: other inputs, for the widths of the soft surrogate.
        settings: how hard.
        file: what was found so far, written after every attack; if it exists, only the others are run.
        report: gets the name of each attack before it runs.

    Raises:
        ValueError: there are fewer test inputs than asked for, the model is one of torch.compile, or the file is not
            whole.

    Warns:
        UserWarning: the model's output has no gradient to its input; ``zero_gradient`` and ``blind`` are then 1.
    """
    if len(test.x) < settings.samples:
        raise ValueError(f"samples: got {settings.samples}; expected at most the {len(test.x)} of the test set")
    model = attackable(model, test.x)
    baseline = None if baseline is None else attackable(baseline, test.x)
    evaluating = _Evaluating(
        model, Split(test.x[: settings.samples], test.y[: settings.samples]), settings, file, report
    )
    attacked, std = with_widths(model, measured_on)
    adaptive = adaptive_attacks(attacked, baseline, settings, std)
    attacks = {**paper_attacks(model, settings), **adaptive}
    evaluating.run("clean", lambda x, y, eps, seed: x, settings.eps)
    for name, attack in attacks.items():
        evaluating.run(name, attack, settings.eps)
    if settings.cw_samples:
        evaluating.run_cw()
        if settings.cw_bounds:
            evaluating.run(L2, l2_attack(attacked, settings, std), min(settings.cw_bounds), settings.cw_samples)
    for eps in settings.bounds:
        for name in ("apgd_ce", *adaptive):
            evaluating.run(_at(name, eps), attacks[name], eps)
    blind = evaluating.mean_share(lambda x, y: blind_share(attacked, x, y, std))
    return evaluating.evaluation(attacks, adaptive, blind)


class _Evaluating:
    def __init__(
        self, model: nn.Module, split: Split, settings: AttackSettings, file: Path | None, report: Report
    ) -> None:
        self.model, self.split, self.settings, self.file, self.report = model, split, settings, file, report
        self.found = _Found()
        if file is not None and file.exists():
            with checkpoint.reading(file):
                self.found = _Found(**checkpoint.load(file))
                self._check_found()

    def _check_found(self) -> None:
        """
        Raises:
            ValueError: the file is not of these inputs.
        """
        found, s = self.found, self.settings
        known = {"right": found.right, "seconds": found.seconds, "cpu_seconds": found.cpu_seconds}
        for key, value in known.items():
            if not isinstance(value, dict):
                raise ValueError(f"{key}: got {type(value).__name__}; expected a dict")
        for key in ("seconds", "cpu_seconds"):
            for name, value in known[key].items():
                if not isinstance(value, float):
                    raise ValueError(f"{key} of {name}: got {type(value).__name__}; expected a float")
        few = min(s.cw_samples, s.samples)
        for name, value in found.right.items():
            _check_column(name, value, few if name == L2 else s.samples, torch.bool)
        if found.distances is not None:
            _check_column("distances", found.distances, few, self.split.x.dtype)

    def run(self, name: str, attack: Attack, eps: float, samples: int | None = None) -> None:
        if name in self.found.right:
            return
        with self._timed(name):
            right = []
            for index, (x, y) in enumerate(self._batches(samples)):
                adversarial = attack(x, y, eps, self.settings.seed + index)
                with frozen(self.model), torch.no_grad():
                    right.append(self.model(adversarial).argmax(1) == y)
            self.found.right[name] = torch.cat(right).cpu()
        self._save()

    def run_cw(self) -> None:
        s = self.settings
        if self.found.distances is not None:
            return
        with self._timed("cw_l2"):
            batches = self._batches(s.cw_samples)
            found = [carlini_wagner(self.model, *batch, s.cw_steps, s.cw_searches)[1] for batch in batches]
            self.found.distances = torch.cat(found).cpu()
        self._save()

    def evaluation(self, attacks: Mapping[str, Attack], adaptive: Mapping[str, Attack], blind: float) -> Evaluation:
        s, found = self.settings, self.found
        right = found.right
        x = self.split.x
        at_bounds = {
            f"{eps:g}": {
                "apgd_ce": _share(right[_at("apgd_ce", eps)]),
                "worst": _worst(right, [_at(name, eps) for name in ("apgd_ce", *adaptive)]),
            }
            for eps in s.bounds
        }
        return Evaluation(
            samples=len(x),
            eps=s.eps,
            accuracy={name: _share(right[name]) for name in ("clean", *attacks)},
            paper_worst=_worst(right, PAPER),
            worst=_worst(right, attacks),
            zero_gradient=self.mean_share(lambda x, y: zero_gradient_share(self.model, x, y)),
            blind=blind,
            caps=cap_facts(self.model, x, s.batch_size),
            cw={f"{bound:g}": _share(found.distances > bound) for bound in s.cw_bounds if found.distances is not None},
            cw_median=None if found.distances is None else _median(found.distances),
            l2_worst=self._l2_worst(),
            bounds=at_bounds,
            seconds=found.seconds,
            cpu_seconds=found.cpu_seconds,
        )

    def mean_share(self, share: Callable[[Tensor, Tensor], float]) -> float:
        """Of all inputs, by a share of each batch."""
        return sum(share(x, y) * len(x) for x, y in self._batches()) / len(self.split.x)

    def _l2_worst(self) -> float | None:
        distances, right = self.found.distances, self.found.right.get(L2)
        if distances is None or right is None:
            return None
        return _share(right & (distances > min(self.settings.cw_bounds)))

    def _save(self) -> None:
        if self.file is not None:
            checkpoint.save(vars(self.found), self.file)

    def _batches(self, samples: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Of the first so many inputs; None: of all."""
        return zip(*(part[:samples].split(self.settings.batch_size) for part in self.split), strict=True)

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        self.report(name)
        began, began_cpu = time.perf_counter(), time.process_time()
        yield
        self.found.seconds[name] = time.perf_counter() - began
        self.found.cpu_seconds[name] = time.process_time() - began_cpu


def _check_column(name: str, value: Any, length: int, dtype: torch.dtype) -> None:
    if not isinstance(value, Tensor) or value.shape != (length,) or value.dtype != dtype:
        got = f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{name}: got {got}; expected {dtype} of shape ({length},)")


def _at(name: str, eps: float) -> str:
    return f"{name} at {eps:g}"


def _share(right: Tensor) -> float:
    return float(right.float().mean())


def _worst(right: Mapping[str, Tensor], names: Any) -> float:
    return _share(torch.stack([right["clean"], *(right[name] for name in names)]).all(0))


def _median(distances: Tensor) -> float | None:
    median = float(distances.median())
    return median if median < float("inf") else None
