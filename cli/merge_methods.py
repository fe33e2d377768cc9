"""The method that the words of `tvgrad merge` choose, with its options, measurements and data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from tvgrad.errors import TvgradError
from tvgrad.wording import near

if TYPE_CHECKING:
    from tvgrad.merging import Measurements, Method
    from tvgrad.problem.objective import Objective
    from tvgrad.store.run import Run

Value = float | int | tuple[int, ...]
GIVEN = ("measurements", "objectives")
"""Fields of methods that are no options."""


@dataclass(frozen=True)
class MethodChoice:
    """What was asked for; the method is made when the runs are known.

    Attributes:
        name: of the method.
        measurements: of the tasks, where the method takes them.
        options: name -> value.
    """

    name: str
    measurements: Measurements | None
    options: Mapping[str, Value]

    @property
    def needs_data(self) -> bool:
        """Whether it evaluates the tasks' data while it merges."""
        from tvgrad.merging import OBJECTIVE_METHODS

        return self.name in OBJECTIVE_METHODS

    def made(self) -> Method:
        """Make a method that needs no data.

        Returns:
            It.
        """
        from tvgrad.merging import METHODS

        if self.measurements is not None and self.name not in METHODS:
            return _kind(self.name)(self.measurements, **self.options)
        return _kind(self.name)(**self.options)

    def made_for(self, runs: Sequence[Run], epoch: int, target: str | None) -> Method:
        """Make the method for runs, with what it takes of them.

        Args:
            runs: that are merged.
            epoch: which is merged.
            target: of their recipe, where data is needed.

        Returns:
            The method; one that needs data has used it, and is ready for these runs' stack alone.
        """
        from tvgrad.merging import FedNova
        from tvgrad.merging.runs import stack_of

        if not self.needs_data:
            if _kind(self.name) is FedNova and "steps" not in self.options:
                return FedNova(tuple(run.point(epoch).steps for run in runs))
            return self.made()
        assert target is not None
        method = _kind(self.name)(tuple(_objective(self.name, run, target) for run in runs), **self.options)
        stack = stack_of(runs, epoch)
        method.check_stack(stack)
        return method.prepared(stack)


def chosen_method(name: str, measurements: Measurements | None, options: Mapping[str, Value]) -> MethodChoice:
    """Check a method's name and options, before any file of a run is read.

    Args:
        name: as it was written.
        measurements: that were given.
        options: likewise.

    Returns:
        The choice.

    Raises:
        TvgradError: there is no such method or option, a value is not allowed, or measurements are missing.
    """
    from tvgrad.merging import MEASURED_METHODS, OBJECTIVE_METHODS

    chosen = name.replace("-", "_")
    known = [field.name for field in fields(_kind(chosen)) if field.name not in GIVEN]
    if chosen in MEASURED_METHODS and measurements is None:
        raise TvgradError(
            f"{chosen} needs measurements of the tasks: make them with tvgrad plan RUNS --recipe TARGET --save "
            "FILE.safetensors, and give --measurements FILE.safetensors"
        )
    for option in options.keys() - set(known):
        flag = f"--{option}" if option in {"density", "seed"} else f"--option {option}"
        has = f" (it has {', '.join(known)})" if known else ""
        raise TvgradError(f"{chosen} has no {option}{has}: leave {flag} out")
    made = MethodChoice(chosen, measurements, dict(options))
    if chosen in OBJECTIVE_METHODS:
        _kind(chosen)((), **options)  # refuses values
    else:
        made.made()
    return made


def parsed_options(words: Sequence[str]) -> dict[str, Value]:
    """Read NAME=VALUE.

    Args:
        words: each such a pair; a value is a number, or whole numbers with commas between them.

    Returns:
        Name -> value.

    Raises:
        TvgradError: a word is not of this form, or a name is given twice.
    """
    found: dict[str, Value] = {}
    for word in words:
        name, sign, value = word.partition("=")
        name = name.strip().replace("-", "_")
        try:
            number = _number(value) if sign and name else None
        except ValueError:
            number = None
        if number is None:
            raise TvgradError(f"--option {word!r} is not of the form NAME=NUMBER: write, say, share=0.1")
        if name in found:
            raise TvgradError(f"--option {name} is given twice: give it once")
        found[name] = number
    return found


def _number(text: str) -> Value:
    if "," in text:
        return tuple(int(part) for part in text.split(","))
    try:
        return int(text)
    except ValueError:
        return float(text)


def _kind(name: str) -> Any:
    from tvgrad.merging import MEASURED_METHODS, METHODS, OBJECTIVE_METHODS

    every = {**METHODS, **MEASURED_METHODS, **OBJECTIVE_METHODS}
    if name not in every:
        raise TvgradError(f"there is no merging method {name!r}: choose one of {', '.join(every)}{near(name, every)}")
    return every[name]


def _objective(name: str, run: Run, target: str) -> Objective:
    """The task's loss, or the entropy of its outputs on test inputs."""
    from tvgrad.merging import AdaMerging
    from tvgrad.merging.ada_merging import mean_entropy
    from tvgrad.problem.likelihood import Categorical, likelihood_of
    from tvgrad.problem.objective import Objective
    from tvgrad.recipes.of_run import objective_of, recipe_of

    recipe = recipe_of(run, target)
    made = objective_of(run, recipe)
    if _kind(name) is not AdaMerging:
        return made
    if recipe.test is None or not isinstance(likelihood_of(recipe.loss), Categorical):
        raise TvgradError(f"{name} makes a classifier sure on test inputs, and task {recipe.name!r} has none: leave it")
    dtype = next(iter(made.initial.values())).dtype
    samples = recipe.test.with_dtype(dtype)
    return Objective(made.model, mean_entropy, samples, forward=recipe.forward, allow=made.allowed)
