"""What a trained model is worth: ``quick`` for the demo; ``evaluating``, every attack and the honest columns."""

from dreluop.adaptive.evaluation.quick import Evaluation, accuracy, evaluate

__all__ = ["Evaluation", "accuracy", "evaluate"]
