"""What a trained model is worth: ``evaluate`` runs every attack and gives the honest columns."""

from dreluop.adaptive.evaluation.budget import AttackBudget
from dreluop.adaptive.evaluation.evaluating import BLIND, Evaluation, evaluate
from dreluop.adaptive.evaluation.outcomes import Outcomes

__all__ = ["BLIND", "AttackBudget", "Evaluation", "Outcomes", "evaluate"]
