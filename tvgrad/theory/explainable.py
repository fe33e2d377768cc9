"""Whether a run can be explained at all, told from its record alone: nobody should be sent where he is turned away."""

from __future__ import annotations

from tvgrad.errors import DamagedRun, TvgradError
from tvgrad.store.run import Run
from tvgrad.theory.error_budget import epochs_with_task_vector
from tvgrad.theory.training_steps import missing_for_replay, recorded_steps, schedule_of
from tvgrad.update_rules.grouped import is_linear


def why_not_explained(run: Run) -> str | None:
    """Say why `tvgrad explain` would refuse a run, whatever recipe is given.

    Args:
        run: a recorded run.

    Returns:
        The reason as a clause, or None where nothing in the record stands against it.

    Raises:
        DamagedRun: a table of the run cannot be read.
    """
    try:
        schedule = schedule_of(run, epochs_with_task_vector(run)[-1])
    except DamagedRun:
        raise
    except TvgradError as error:
        return str(error)
    # A script's steps can be gone through by starting it again; a recipe's need its batches.
    if "command" in run.info or is_linear(schedule.rule) or recorded_steps(run, schedule) is not None:
        return None
    missing = None if schedule.full else missing_for_replay(run, schedule)
    if missing is None:
        return None
    return f"{run.root} was trained by {schedule.rule.name}, and {missing}"
