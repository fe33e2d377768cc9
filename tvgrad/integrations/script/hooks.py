"""Hooks: where torch tells a `Session` of steps, backward passes, clipping and loss scaling.

Torch's own hooks are used where there are some. The functions that are wrapped return what they returned before, and
get what they got before. Where torch.compile looks on, they are the functions that they wrap: the script's graphs stay
what they were.
"""

from __future__ import annotations

import atexit
import functools
import os
import sys
import types
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from tvgrad.integrations.script.clipping import largest_coordinate
from tvgrad.integrations.script.notes import leave_note
from tvgrad.integrations.script.options import ScriptOptions
from tvgrad.integrations.script.session import Session
from tvgrad.numerics.no_compile import eager
from tvgrad.record.spread_model import largest_of_all, norm_of_all
from tvgrad.store.background import may_be_a_writers, writers_at_rest

if TYPE_CHECKING:
    from tvgrad.integrations.measuring.measuring_session import MeasuringSession


def install() -> Session | MeasuringSession | None:
    """Install the hooks, once torch is imported.

    Returns:
        The session, or None in a process that no command of tvgrad has started.
    """
    options = ScriptOptions.from_environment()
    if options is None:
        return None
    leave_note(options.notes, event="torch")
    if options.measure is not None:
        from tvgrad.integrations.measuring import neutral_hooks  # a recording does without

        return neutral_hooks.follow(options, options.measure)
    session = Session(options)
    session.guard(lambda: _install(session))
    _watch_closing()
    atexit.register(session.close)
    _watch_exit(session)
    if torch.distributed.is_available():
        _watch_groups(session)
    return session


def _watch_groups(session: Session) -> None:
    """A script takes its group of processes apart: an epoch that a `break` has ended is recorded while there is one."""
    original = torch.distributed.destroy_process_group

    @functools.wraps(original)
    def destroy_process_group(*args: Any, **kwargs: Any) -> None:
        if session.epochs.dropped and sys.exc_info()[0] is None:  # and not in a `finally` after an error of one process
            session.guard(session.epochs.end_held)
        original(*args, **kwargs)

    torch.distributed.destroy_process_group = destroy_process_group


def _watch_exit(session: Session) -> None:
    """A script that ends by `os._exit` runs no exit handlers: what is complete is recorded before."""
    original = os._exit

    @functools.wraps(original)
    def leave(status: int) -> NoReturn:
        if session.active:
            session.close(clean=status == 0)
        original(status)

    os._exit = leave


def _watch_closing() -> None:
    """A script may close descriptors by number: it waits until the thread that writes the record has none open.

    A number that is closed under the thread goes to the file that the script opens next, and the thread would write
    into it. Closing a file that is not the run's does not wait.
    """
    close_range, close_one = os.closerange, os.close

    @functools.wraps(close_range)
    def closerange(low: int, high: int, /) -> None:
        with writers_at_rest():
            close_range(low, high)

    @functools.wraps(close_one)
    def close(fd: int) -> None:
        if may_be_a_writers(fd):
            with writers_at_rest():
                close_one(fd)
        else:
            close_one(fd)

    os.closerange, os.close = closerange, close

    @atexit.register
    def put_back() -> None:
        """What is closed when modules have gone has no need of us."""
        if os.close is close:
            os.close = close_one


def _install(session: Session) -> None:
    register_optimizer_step_pre_hook(
        eager(lambda optimizer, args, kwargs: session.guard(lambda: session.before_step(optimizer)))
    )
    register_optimizer_step_post_hook(
        eager(lambda optimizer, args, kwargs: session.guard(lambda: session.after_step(optimizer)))
    )
    session.loaders.install()
    _watch_backward(session)
    _watch_clipping(session)
    _watch_scaling(session)


def _watch_backward(session: Session) -> None:
    original = torch.autograd.backward

    @functools.wraps(original)
    def backward(*args: Any, **kwargs: Any) -> None:
        if torch.compiler.is_compiling():
            original(*args, **kwargs)
            return
        tensors = args[0] if args else kwargs.get("tensors")
        gradients = args[1] if len(args) > 1 else kwargs.get("grad_tensors")
        session.guard(lambda: session.before_backward(tensors, gradients))
        original(*args, **kwargs)
        session.guard(session.after_backward)

    torch.autograd.backward = backward


def _watch_clipping(session: Session) -> None:
    original = torch.nn.utils.clip_grad_norm_

    @functools.wraps(original)
    def clip_grad_norm_(parameters: Any, max_norm: float, *args: Any, **kwargs: Any) -> torch.Tensor:
        if torch.compiler.is_compiling():
            return original(parameters, max_norm, *args, **kwargs)
        listed, given = _listed(parameters)
        total = original(given, max_norm, *args, **kwargs)
        euclidean = (args[0] if args else kwargs.get("norm_type", 2)) in {2}
        session.guard(lambda: session.clipped(listed, norm_of_all(total), float(max_norm), euclidean=euclidean))
        return total

    by_value = torch.nn.utils.clip_grad_value_

    @functools.wraps(by_value)
    def clip_grad_value_(parameters: Any, clip_value: float, *args: Any, **kwargs: Any) -> None:
        if torch.compiler.is_compiling():
            by_value(parameters, clip_value, *args, **kwargs)
            return
        listed, given = _listed(parameters)
        largest: list[torch.Tensor] = []
        session.guard(lambda: largest.append(largest_of_all(largest_coordinate(listed), listed)))
        by_value(given, clip_value, *args, **kwargs)
        if largest:
            session.guard(lambda: session.clipped(listed, largest[0], float(clip_value), by_value=True))

    torch.nn.utils.clip_grad_norm_ = clip_grad_norm_
    torch.nn.utils.clip_grad.clip_grad_norm_ = clip_grad_norm_
    torch.nn.utils.clip_grad_value_ = clip_grad_value_
    torch.nn.utils.clip_grad.clip_grad_value_ = clip_grad_value_


def _listed(parameters: Any) -> tuple[list[torch.Tensor], Any]:
    """The parameters of a call, and what to hand on in their place: a generator can be read only once."""
    if isinstance(parameters, torch.Tensor):
        return [parameters], parameters
    listed = list(parameters)
    return listed, (parameter for parameter in listed) if isinstance(parameters, types.GeneratorType) else listed


def _watch_scaling(session: Session) -> None:
    scaler_class = torch.amp.GradScaler
    original = scaler_class.step

    @functools.wraps(original)
    def step(scaler: Any, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> float | None:
        if torch.compiler.is_compiling() or not scaler.is_enabled():
            return original(scaler, optimizer, *args, **kwargs)
        session.guard(lambda: session.scaling(float(scaler.get_scale())))
        result = original(scaler, optimizer, *args, **kwargs)
        session.guard(lambda: session.scaled(optimizer))
        return result

    unscale = scaler_class.unscale_

    @functools.wraps(unscale)
    def unscale_(scaler: Any, optimizer: torch.optim.Optimizer) -> None:
        unscale(scaler, optimizer)
        if not torch.compiler.is_compiling() and scaler.is_enabled():
            session.guard(lambda: session.unscaled(optimizer))

    setattr(scaler_class, "step", step)  # noqa: B010 - mypy forbids a plain assignment to a method
    setattr(scaler_class, "unscale_", unscale_)  # noqa: B010
