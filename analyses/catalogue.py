"""The analyses by name."""

from __future__ import annotations

__all__ = ["ANALYSES"]

ANALYSES = {
    "one_epoch_equivalence": "After one full-batch epoch the task vector is minus the rate times the gradient.",
    "second_order_error": "One Hessian-vector product predicts how far it drifts from the gradient afterwards.",
    "convergence_orders": "What the predictions leave falls with the second or third power of the learning rate.",
    "multitask_gap": "Task arithmetic and multitask training differ by a second-order term that is known beforehand.",
    "practical_optimizers": "Momentum and Adam leave a residual that no small rate removes, and the budget names it.",
    "merge_epochs": "Merging models tuned for one epoch is as good as merging converged ones.",
}
"""Analysis (a module of this package with a function `analyse`) -> the claim, in a line."""
