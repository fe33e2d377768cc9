"""FeedForward: what notebooks import. The derivative bounds of a network, and the certificates built on them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tvgrad.bounds.certificates.batches import Batches
from tvgrad.bounds.certificates.certificate import Certificate, certify
from tvgrad.bounds.derivatives.derivative_bounds import DerivativeBounds
from tvgrad.bounds.losses.base import UnknownLoss
from tvgrad.errors import TvgradError
from tvgrad.problem.recipe import Recipe
from tvgrad.update_rules.base import UpdateRule
from tvgrad.wording import loading_error

if TYPE_CHECKING:
    from typing_extensions import Self

_LOSS_FUNCTIONS: dict[Any, str | nn.Module] = {
    nn.functional.cross_entropy: "cross_entropy",
    nn.functional.binary_cross_entropy_with_logits: "bce",
    nn.functional.mse_loss: nn.MSELoss(),
}


class FeedForward(DerivativeBounds):
    """A feed-forward network with its loss and data: bounds on derivatives, and on what training can do.

    The constructor, `from_matrices`, `gradient_norm`, `hessian_norm`, `hessian_lipschitz` and `closed_form` are those
    of `DerivativeBounds`.

    Examples:
        >>> import torch
        >>> from tvgrad.bounds import FeedForward
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)).double()
        >>> inputs, targets = torch.eye(4, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
        >>> problem = FeedForward(model, inputs, targets)
        >>> problem.gradient_norm() <= problem.gradient_norm(radius=0.1) <= problem.closed_form(0.1).gradient_norm
        True
    """

    @classmethod
    def of_recipe(cls, recipe: Recipe, weights: dict[str, torch.Tensor] | None = None) -> Self:
        """Read a recipe's model, loss and training samples as the bounds see them.

        Args:
            recipe: the task.
            weights: a complete state for the model; by default its own.

        Returns:
            The network with its data, in float64.

        Raises:
            TvgradError: the recipe goes through its own forward or count, for which no bounds are known, or the
                network, the loss or the data is not one that the bounds know.
        """
        if recipe.forward is not None or recipe.count is not None or recipe.loss is None:
            raise TvgradError(
                f"there are no bounds for {recipe.name}: its own forward or count is not known to them; use (inputs, "
                "targets) with a loss of torch.nn"
            )
        batch = recipe.train.batch(0, len(recipe.train))
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise TvgradError(f"there are no bounds for {recipe.name}: its batches are not (inputs, targets)")
        model = copy.deepcopy(recipe.model)
        if weights is not None:
            # Widened first: a float32 module would round the weights of a float64 run.
            model = model.double()
            try:
                model.load_state_dict(weights)
            except RuntimeError as error:
                raise TvgradError(f"the weights are not those of {recipe.name}: {loading_error(error)}") from None
        return cls(model, batch[0], batch[1], _loss(recipe))

    def certificate(
        self,
        rule: UpdateRule | float,
        epochs: int,
        simulate: bool = True,
        *,
        batches: Batches | None = None,
        forms: Sequence[str] | None = None,
    ) -> Certificate:
        """Bound the error of the first-order prediction of a task vector, before training.

        Args:
            rule: a linear rule making one step an epoch, or the learning rate of gradient descent.
            epochs: k.
            simulate: also try a tube round the path that float64 takes, which costs k gradients, as much as the
                training; without it all forms use the pretrained weights alone.
            batches: for each epoch, the positions of the samples of each step, in order; None: one step an epoch on
                all samples. The prediction uses the gradient of all samples, in every step.
                Mini-batches have the tube alone.
            forms: names of the forms to try, as `Certificate.forms` gives them; None: all. The tube alone, `["tube"]`,
                costs 30 to 70 gradients, all forms some hundreds; the uniform closed form is always tried.

        Returns:
            The best bounds, every form's own, and the reasons of those that give none.

        Raises:
            NoCertificate: no form gives a bound; the message says why, form by form.
            TvgradError: the batches do not fit epochs and samples, or a form is not known.

        Examples:
            >>> import torch
            >>> from tvgrad.bounds import FeedForward
            >>> from tvgrad.update_rules import Momentum
            >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)).double()
            >>> problem = FeedForward(model, torch.eye(4, dtype=torch.float64), torch.tensor([0, 1, 2, 0]))
            >>> certificate = problem.certificate(Momentum(0.001, 0.9), epochs=3, simulate=False)
            >>> 0 < certificate.lower_bound <= certificate.error_bound
            True
            >>> halves = [[torch.tensor([0, 2]), torch.tensor([1, 3])]] * 3
            >>> problem.certificate(Momentum(0.001, 0.9), epochs=3, batches=halves).method
            'tube'
            >>> quick = problem.certificate(Momentum(0.001, 0.9), epochs=3, forms=["tube"])
            >>> [form.name for form in quick.forms]
            ['closed, uniform', 'tube']
        """  # noqa: DOC502 - raised by certify
        return certify(self, rule, epochs, simulate=simulate, batches=batches, forms=forms)


def _loss(recipe: Recipe) -> str | nn.Module:
    """PyTorch's own losses alone: another function of the same name may compute something else."""
    if isinstance(recipe.loss, nn.Module):
        return recipe.loss
    known = next((name for function, name in _LOSS_FUNCTIONS.items() if function is recipe.loss), None)
    if known is None:
        name = getattr(recipe.loss, "__name__", type(recipe.loss).__name__)
        raise UnknownLoss(
            f"no bounds are known for the loss {name} of {recipe.name}: give one of torch.nn (CrossEntropyLoss, "
            "BCEWithLogitsLoss, MSELoss), or use the estimates, which take any loss"
        )
    return known
