"""FeedForward: what notebooks import. The derivative bounds of a network, and the certificates built on them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tvgrad.bounds.certificate import Certificate, certify, certify_run
from tvgrad.bounds.derivatives import DerivativeBounds
from tvgrad.update_rule_base import UpdateRule

__all__ = ["FeedForward"]


class FeedForward(DerivativeBounds):
    """A feed-forward network with its loss and data: bounds on derivatives, and on what training can do.

    The constructor, `from_matrices`, `gradient_norm`, `hessian_norm`, `hessian_lipschitz` and `closed_form` are those
    of `DerivativeBounds`.
    """

    def certificate(self, rule: UpdateRule | float, epochs: int, simulate: bool = True) -> Certificate:
        """Bound the error of the first-order prediction of a task vector, before training.

        Args:
            rule: a linear rule making one step an epoch, or the learning rate of gradient descent.
            epochs: k.
            simulate: also try a tube round the path that float64 takes, which costs k gradients, as much as the
                training; without it all forms use theta_0 alone.

        Returns:
            The best bounds, every form's own, and the reasons of those that give none.

        Raises:
            NoCertificate: no form gives a bound; the message says why, form by form.
        """  # noqa: DOC502 - raised by certify
        return certify(self, rule, epochs, simulate)

    def certificate_from_run(self, rule: UpdateRule | float, weights: Sequence[torch.Tensor]) -> Certificate:
        """Bound the same error after training, by a tube round recorded weights.

        Args:
            rule: the rule that was followed, one step an epoch.
            weights: flat weights theta_0 .. theta_{k-1}, like `network.flat`.

        Returns:
            Bounds for the iterates of exact arithmetic, and how far the recorded ones are from them.

        Raises:
            NoCertificate: the weights do not start at this network's, or the tube grows beyond all bounds.
        """  # noqa: DOC502 - raised by certify_run
        return certify_run(self, rule, weights)
