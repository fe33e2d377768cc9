"""Placement: finds the model of a run in a script that trains it again, and puts recorded weights into it."""

from __future__ import annotations

import sys
import weakref
from pathlib import Path

import torch
from torch import nn

from tvgrad.errors import TvgradError
from tvgrad.integrations.measuring.held_whole import held_whole
from tvgrad.integrations.measuring.pass_options import PassOptions
from tvgrad.integrations.measuring.point_weights import PointWeights
from tvgrad.integrations.script.find_trained_module import TrainedModule, held_by, trained_modules, whole_models
from tvgrad.integrations.script.weights_watch import differ
from tvgrad.store.measured import FROM_THE_START
from tvgrad.store.run import Run
from tvgrad.vectors.parameters import Weights

ANOTHER = "trains another model than the run records"
PART = "trains in its first epoch only a part of what the run records"
TRIES = 40
"""A look for the model goes through all objects of the process: so many that were in vain are enough between steps."""


class Placement:
    """The weights of one point of a run, on their way into the script's model and there.

    Attributes:
        trained: the model and its optimizer, once they are found.
        made_whole: whether `fully_shard` had spread it.
        misfit: what the script does that cannot be measured, where an optimizer was looked at and its model is not
            the run's; None where none was.
    """

    def __init__(self, options: PassOptions) -> None:
        """Read what is to be put in.

        Args:
            options: names the run and the point.

        Raises:
            TvgradError: the run or its weights cannot be read.
        """  # noqa: DOC502 - raised by Run
        self._run = Run.open(options.run)
        self._run_name = str(Path(options.run).name)
        shift = None if options.shift is None else Path(options.shift)
        self._weights = PointWeights(self._run, options.number, shift, options.along)
        self._model = options.model
        self._optimizers: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()
        self._tries = 0
        self._version = 0
        self._stepped: set[int] = set()
        self._waiting: list[torch.optim.Optimizer] = []
        self.trained: TrainedModule | None = None
        self.made_whole = False
        self.misfit: str | None = None

    @property
    def start(self) -> PointWeights:
        """Name -> the weights that are put in, on the CPU, read when they are asked for."""
        return self._weights

    def meet(self, optimizer: torch.optim.Optimizer) -> None:
        """Remember an optimizer that the script has made.

        Args:
            optimizer: any.
        """
        if optimizer not in self._optimizers:
            self._optimizers.add(optimizer)
            self._tries = 0

    def place(self) -> bool:
        """Put the weights in, where the model is there and does not hold them.

        Returns:
            Whether they were put in by this call.
        """
        if self.trained is None and self._optimizers and self._tries < TRIES:
            self._tries += 1
            found = self._found()
            self.trained = None if found is None else held_whole(found)
            self.made_whole = self.trained is not found
        elif self.trained is not None and self._stands():
            return False
        if self.trained is None:
            return False
        self._copy(self.trained.root)
        self._version = self._present_version()
        return True

    def moves(self, optimizer: torch.optim.Optimizer) -> bool:
        """Tell whether an optimizer moves the model's parameters, or its part of them, and no others.

        Args:
            optimizer: any.

        Returns:
            Whether it does.
        """
        trained = self.trained
        if trained is None:
            return False
        if any(optimizer is one for one in trained.optimizers):
            return True
        own = {id(parameter) for parameter in trained.parameters.values()}
        held = {key for key, tensor in held_by(optimizer).items() if tensor.requires_grad}
        return held == own

    @property
    def in_step(self) -> bool:
        """Whether one of the model's optimizers has stepped, and another has not yet."""
        return bool(self._stepped)

    def require_no_open_step(self) -> None:
        """Refuse a backward pass between the steps of one model's optimizers.

        Raises:
            TvgradError: one of them has stepped, and another has not.
        """
        if self.in_step:
            raise TvgradError(
                "the optimizers of its model step after backward passes of their own, and a measuring pass follows "
                "optimizers that step together"
            )

    def ends_step(self, optimizer: torch.optim.Optimizer) -> bool:
        """Tell whether all optimizers of the model have stepped with this one.

        Args:
            optimizer: one of them.

        Returns:
            Whether the step is complete.

        Raises:
            TvgradError: gradients were taken away before it is.
        """
        trained = self.trained
        if trained is None or not trained.more or not any(optimizer is one for one in trained.optimizers):
            return True
        self._stepped |= {key for key, tensor in held_by(optimizer).items() if tensor.grad is not None}
        self._waiting = [one for one in self._waiting or trained.optimizers if one is not optimizer]
        if self._waiting:
            return False
        left = {id(parameter) for parameter in trained.parameters.values() if parameter.grad is not None}
        lost, self._stepped = self._stepped - left, set()
        if lost:
            raise TvgradError("the script takes gradients away between the steps of one model's optimizers")
        return True

    def hopeless(self, optimizer: torch.optim.Optimizer) -> bool:
        """Tell, where the model is not found, whether it will not be: the only optimizer trains another, or a part.

        Args:
            optimizer: one that steps.

        Returns:
            Whether there is nothing to wait for.
        """
        others = [one for one in self._optimizers if one is not optimizer]
        return self.trained is None and (not others or (self.misfit or "").startswith(PART))

    def require_unmoved(self) -> None:
        """Refuse weights that are not those that were put in.

        Raises:
            TvgradError: the script has moved them by something besides its optimizer.
        """
        if self.trained is not None and differ(self._weights, dict(self.trained.root.named_parameters())):
            raise TvgradError(
                "the script moved the weights by something besides its optimizer's steps (it loads weights after the "
                "first batch, or projects, averages or prunes them), so that no pass stays at the recorded ones"
            )

    def _stands(self) -> bool:
        """Whether the weights are those that were put in."""
        assert self.trained is not None
        version = self._present_version()
        if version != self._version and differ(self._weights, dict(self.trained.root.named_parameters())):
            return False
        self._version = version
        return True

    def _present_version(self) -> int:
        assert self.trained is not None
        return sum(parameter._version for parameter in self.trained.parameters.values())

    def _found(self) -> TrainedModule | None:
        fitting: list[TrainedModule] = []
        self.misfit = None
        for optimizer in list(self._optimizers):
            try:
                found = trained_modules(optimizer, sys._getframe())
            except TvgradError as error:
                self.misfit = f"{ANOTHER}: {error}"
                continue
            whole = next(one for one in whole_models(found) if any(optimizer is mine for mine in one.optimizers))
            for candidate in [whole] if whole.more == () else [whole, found[0]]:
                misfit = self._misfit(candidate)
                if misfit is None and not any(one.root is candidate.root for one in fitting):
                    fitting.append(candidate)
                if misfit is None:
                    break
                if not (self.misfit or "").startswith(PART):
                    self.misfit = misfit
        if len(fitting) > 1:
            fitting = [one for one in fitting if self._model in {one.label, type(one.root).__name__}] or fitting
        if len(fitting) > 1:
            listed = "; ".join(one.description for one in fitting)
            raise TvgradError(
                f"{len(fitting)} models of the script have the run's parameters: pick by --model ({listed})"
            )
        return fitting[0] if fitting else None

    def _misfit(self, candidate: TrainedModule) -> str | None:
        parameters, shapes = candidate.parameters, self._weights.shapes
        present: Weights = {**dict(candidate.root.named_parameters()), **parameters}
        for name, shape in shapes.items():
            if name not in present:
                return f"{ANOTHER}: it does not train {name}"
            if present[name].shape != shape:
                return f"{ANOTHER}: its {name} has shape {tuple(present[name].shape)} and the run's {tuple(shape)}"
        extra = [name for name in parameters if name not in shapes]
        if extra:
            return f"{ANOTHER}: it trains {extra[0]}, which {self._run_name} does not have"
        frozen = [name for name in shapes if name not in parameters]
        return f"{PART}, without {frozen[0]}: {FROM_THE_START}" if frozen else None

    @torch.no_grad()
    def _copy(self, root: nn.Module) -> None:
        present: Weights = {**dict(root.named_parameters()), **dict(root.named_buffers())}
        tied: dict[str, list[str]] = {}
        for alias, name in self._run.manifest.tied.items():
            tied.setdefault(name, []).append(alias)
        for content in (self._run.static(), self._run.buffers(self._weights.number), self._weights):
            for name in content:  # a tensor at a time
                tensor = content[name]
                for found in (name, *tied.get(name, ())):
                    if found in present and present[found].shape == tensor.shape:
                        present[found].copy_(tensor)
