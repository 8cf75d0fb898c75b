"""The honest columns of a model: standard attacks, the adaptive worst, the share of inputs without a gradient."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dreluop._internal import checks
from dreluop.adaptive.attacks.checks import check_arguments, frozen, zero_gradient_share
from dreluop.adaptive.attacks.margins import Std, margin
from dreluop.adaptive.evaluation.attackable import attackable
from dreluop.adaptive.evaluation.budget import AttackBudget
from dreluop.adaptive.evaluation.caps import CapFacts, cap_facts
from dreluop.adaptive.evaluation.columns import (
    CW,
    NAMES,
    STANDARD,
    Attack,
    adaptive_attacks,
    blind_share,
    obstacle,
    standard_attacks,
    with_widths,
)
from dreluop.adaptive.evaluation.outcomes import L2, Outcomes
from dreluop.modules import DReLU, SReLU

# A share of inputs without any gradient above which attacks say nothing about a model.
BLIND = 0.05
# Inputs that give the widths of the surrogates, unless others are given: they are one batch.
MEASURED_SAMPLES = 500


@dataclass(frozen=True)
class Evaluation:
    """What a model is worth at ``eps``. Shares in [0, 1]; accuracies over the attacked inputs.

    Attributes:
        accuracy: ``clean``, then by attack.
        white_box_worst: accuracy left when each input is given the worst, for it, of the standard L-infinity attacks
            (FGSM, PGD, APGD-CE, APGD-DLR, Square), which do not know of caps.
        worst: the same over all L-infinity attacks, those that know of the caps too: the adaptive worst.
        zero_gradient: share of the inputs whose loss has an exactly zero gradient.
        blind: share of the inputs on which the adaptive attacks have an exactly zero gradient too. Above ``BLIND``,
            ``worst`` is a loose upper bound only: something in the model hides its gradient, and no surrogate
            reaches it.
        caps: None for a model without capped modules.
        cw: accuracy under CW-L2 within each of the L2 bounds, by the bound; cw_median: of what it found.
        l2_worst: accuracy within the smallest of the bounds under CW-L2 and the adaptive attack in L2; None without.
        bounds: for each radius of the sweep ``apgd_ce`` and ``worst``, over it and the adaptive attacks.
        seconds, cpu_seconds: of each attack.
        left_out: attacks that could not run, and why; ``worst`` may be too high without them.
    """

    samples: int
    eps: float
    accuracy: dict[str, float]
    white_box_worst: float
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
    left_out: dict[str, str]


def evaluate(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    *,
    attacks: Collection[str] | None = None,
    budget: AttackBudget | None = None,
    measured_on: Tensor | None = None,
    baseline: nn.Module | None = None,
    outcomes: Outcomes | None = None,
) -> Evaluation:
    """Attack a classifier, with caps or without, and say what its accuracy under attack is worth.

    FGSM, PGD and the attacks on margins need only torch; the others need ``pip install dreluop[robustness]``.

    Args:
        model: gives logits of shape (N, classes); evaluated in eval mode with frozen weights, both restored.
        x: floating-point inputs in [0, 1] on the model's device, shape (N, ...); images are (N, C, H, W).
        y: labels, int64, shape (N,).
        eps: radius of the L-infinity ball, in units of x.
        attacks: names out of ``columns.NAMES``; None runs all that can run, and warns of those that cannot.
        budget: how hard; None is ``AttackBudget()``.
        measured_on: inputs that give the widths of the surrogates of the caps; None takes the first 500 of x.
        baseline: a network trained separately, whose adversarial inputs are tried on the model; None: not tried.
        outcomes: filled attack by attack; what it already holds is not run again.

    Raises:
        TypeError, ValueError: an argument is not as above, the model is one of torch.compile, or outcomes are not of
            these inputs.
        ModuleNotFoundError: a named attack needs a package that is not installed.

    Warns:
        UserWarning: attacks are left out; or the model's output has no gradient to its input, and ``zero_gradient`` and
            ``blind`` are 1.
    """
    _check_inputs(model, x, y, eps)
    budget = budget or AttackBudget()
    outcomes = Outcomes() if outcomes is None else outcomes
    outcomes.check(len(x), min(budget.cw_samples, len(x)), x.dtype)
    model = attackable(model, x)
    baseline = None if baseline is None else attackable(baseline, x)
    attacked, std = with_widths(model, x[:MEASURED_SAMPLES] if measured_on is None else measured_on)
    standard, adaptive = standard_attacks(model, budget), adaptive_attacks(attacked, baseline, budget, std)
    left_out = _left_out(attacks, (*standard, *adaptive), budget, x, _classes(model, x, y))
    wanted = {*(NAMES if attacks is None else attacks)} - left_out.keys()
    run = _Run(model, x, y, eps, budget, outcomes)
    chosen, swept = _named(standard | adaptive, wanted), _named({"apgd_ce": standard["apgd_ce"], **adaptive}, wanted)
    run.all(chosen, swept)
    if CW in wanted and budget.cw_samples:
        run.in_l2(attacked, std)
    blind = run.mean_share(lambda x, y: blind_share(attacked, x, y, std))
    return run.evaluation(tuple(chosen), tuple(swept), blind, left_out)


class _Run:
    def __init__(
        self, model: nn.Module, x: Tensor, y: Tensor, eps: float, budget: AttackBudget, outcomes: Outcomes
    ) -> None:
        self.model, self.x, self.y, self.eps, self.budget, self.outcomes = model, x, y, eps, budget, outcomes

    def all(self, chosen: Mapping[str, Attack], swept: Mapping[str, Attack]) -> None:
        """Every chosen attack at eps, and some of them at the bounds of the sweep."""
        self.attack("clean", lambda x, y, eps, seed: x, self.eps)
        for name, attack in chosen.items():
            self.attack(name, attack, self.eps)
        for bound in self.budget.bounds:
            for name, attack in swept.items():
                self.attack(_at(name, bound), attack, bound)

    def attack(self, name: str, attack: Attack, eps: float, samples: int | None = None) -> None:
        if name in self.outcomes.right:
            return
        with self.outcomes.timed(name):
            right = []
            for index, (x, y) in enumerate(self._batches(samples)):
                adversarial = attack(x, y, eps, self.budget.seed + index)
                with frozen(self.model), torch.no_grad():
                    right.append(self.model(adversarial).argmax(1) == y)
            self.outcomes.right[name] = torch.cat(right).cpu()

    def in_l2(self, attacked: nn.Module, std: Std | None) -> None:
        """CW-L2, and beside it the adaptive attack within the smallest of its bounds."""
        from dreluop.adaptive.attacks.carlini import carlini_wagner  # noqa: PLC0415 (its package is optional)

        b = self.budget
        if self.outcomes.distances is None:
            with self.outcomes.timed(CW):
                batches = self._batches(b.cw_samples)
                found = [carlini_wagner(self.model, *batch, b.cw_steps, b.cw_searches)[1] for batch in batches]
                self.outcomes.distances = torch.cat(found).cpu()

        def in_ball(x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
            return margin(attacked, x, y, eps, b.apgd_steps, seed, std=std, norm="L2")

        self.attack(L2, in_ball, min(b.cw_bounds), b.cw_samples)

    def evaluation(
        self, ran: Collection[str], swept: Collection[str], blind: float, left_out: dict[str, str]
    ) -> Evaluation:
        budget, right, distances = self.budget, self.outcomes.right, self.outcomes.distances
        return Evaluation(
            samples=len(self.x),
            eps=self.eps,
            accuracy={name: _share(right[name]) for name in ("clean", *ran)},
            white_box_worst=_worst(right, [name for name in STANDARD if name in ran]),
            worst=_worst(right, ran),
            zero_gradient=self.mean_share(lambda x, y: zero_gradient_share(self.model, x, y)),
            blind=blind,
            caps=cap_facts(self.model, self.x, budget.batch_size),
            cw={f"{bound:g}": _share(distances > bound) for bound in budget.cw_bounds if distances is not None},
            cw_median=None if distances is None else _median(distances),
            l2_worst=_l2_worst(self.outcomes, budget),
            bounds={f"{bound:g}": _at_bound(right, bound, swept) for bound in budget.bounds},
            seconds=self.outcomes.seconds,
            cpu_seconds=self.outcomes.cpu_seconds,
            left_out=left_out,
        )

    def mean_share(self, share: Callable[[Tensor, Tensor], float]) -> float:
        """Of all inputs, by a share of each batch."""
        return sum(share(x, y) * len(x) for x, y in self._batches()) / len(self.x)

    def _batches(self, samples: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Of the first so many inputs; None: of all."""
        return zip(*(part[:samples].split(self.budget.batch_size) for part in (self.x, self.y)), strict=True)


def _check_inputs(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}; expected a torch.nn.Module")
    checks.float_tensor("x", x)
    if x.ndim < 2 or len(x) == 0:
        raise ValueError(f"x: got shape {tuple(x.shape)}; expected (N, ...) with at least one sample")
    if not isinstance(y, Tensor) or y.dtype != torch.int64 or y.shape != x.shape[:1]:
        got = f"{y.dtype} of shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(f"y: got {got}; expected torch.int64 of shape ({len(x)},)")
    check_arguments(x, checks.number("eps", eps))
    for name, module in model.named_modules():
        if isinstance(module, DReLU | SReLU) and module.above == "zero":
            raise ValueError(
                f'model: {name or "it"} has above="zero" (dreluop.surgery.protect), which no surrogate gradient '
                "passes; evaluate the network as it was before"
            )


def _classes(model: nn.Module, x: Tensor, y: Tensor) -> int:
    with frozen(model), torch.no_grad():
        classes = int(model(x[:1]).shape[1])
    if int(y.min()) < 0 or int(y.max()) >= classes:
        raise ValueError(f"y: got labels from {int(y.min())} to {int(y.max())}; expected 0 to {classes - 1}")
    return classes


def _left_out(
    wanted: Collection[str] | None, known: Collection[str], budget: AttackBudget, x: Tensor, classes: int
) -> dict[str, str]:
    """The attacks that cannot run, and why; an error if they were asked for by name."""
    if wanted is not None:
        for name in wanted:
            if name not in NAMES:
                raise ValueError(f"attacks: got {name!r}; expected some of {', '.join(NAMES)}")
            if name != CW and name not in known:
                raise ValueError(
                    f"attacks: got {name!r}, which does not apply here; expected some of {', '.join(known)}"
                )
            error = obstacle(name, x, classes)
            if error is not None:
                raise error
        return {}
    names = (*known, CW) if budget.cw_samples else tuple(known)
    found = {name: str(error) for name in names if (error := obstacle(name, x, classes)) is not None}
    if found:
        warnings.warn(f"attacks left out: {'; '.join(dict.fromkeys(found.values()))}", stacklevel=3)
    return found


def _named(attacks: Mapping[str, Attack], names: Collection[str]) -> dict[str, Attack]:
    return {name: attack for name, attack in attacks.items() if name in names}


def _at(name: str, eps: float) -> str:
    return f"{name} at {eps:g}"


def _at_bound(right: Mapping[str, Tensor], bound: float, swept: Collection[str]) -> dict[str, float]:
    found = {"apgd_ce": _share(right[_at("apgd_ce", bound)])} if "apgd_ce" in swept else {}
    return found | {"worst": _worst(right, [_at(name, bound) for name in swept])}


def _share(right: Tensor) -> float:
    return float(right.float().mean())


def _worst(right: Mapping[str, Tensor], names: Collection[str]) -> float:
    return _share(torch.stack([right["clean"], *(right[name] for name in names)]).all(0))


def _l2_worst(outcomes: Outcomes, budget: AttackBudget) -> float | None:
    distances, right = outcomes.distances, outcomes.right.get(L2)
    if distances is None or right is None:
        return None
    return _share(right & (distances > min(budget.cw_bounds)))


def _median(distances: Tensor) -> float | None:
    median = float(distances.median())
    return median if median < math.inf else None
