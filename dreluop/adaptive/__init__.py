"""What evaluates a network honestly: ``evaluate``, and attacks that know of the caps.

Where all units of a layer are off or capped, the exact input gradient is zero, and an attack that follows it finds
nothing: gradient masking, not robustness. An attack counts only if it knows of the caps.
"""

from dreluop.adaptive.evaluation import AttackBudget, Evaluation, Outcomes, evaluate
from dreluop.adaptive.surrogates import measure_std, reached_caps, smooth_forward, surrogate_backward
from dreluop.adaptive.uncapped import UncappedReLU, remove_caps

__all__ = [
    "AttackBudget",
    "Evaluation",
    "Outcomes",
    "UncappedReLU",
    "evaluate",
    "measure_std",
    "reached_caps",
    "remove_caps",
    "smooth_forward",
    "surrogate_backward",
]
