"""Neutral hooks: in a measuring pass an optimizer step changes nothing, and clipping nothing either.

What an optimizer's class calls its step is replaced by a function that has the closure computed, tells the session, and
runs the hooks that others have registered. Weights and the optimizer's state stay what they are.
"""

from __future__ import annotations

import atexit
import functools
import itertools
import types
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.data import dataloader

from tvgrad.integrations.measuring.gradient_total import reaches
from tvgrad.integrations.measuring.measuring_session import MeasuringSession
from tvgrad.integrations.measuring.pass_options import PassOptions
from tvgrad.integrations.measuring.ranks import keep_gradients_apart
from tvgrad.integrations.measuring.replay_session import ReplaySession
from tvgrad.integrations.script.options import ScriptOptions
from tvgrad.numerics.no_compile import eager
from tvgrad.record.collector import when_gradients_are_there


def follow(options: ScriptOptions, plan: PassOptions) -> MeasuringSession:
    """Begin a pass, once torch is imported.

    Args:
        options: the command's options.
        plan: what the pass does.

    Returns:
        The session.
    """
    if plan.train:
        replay = ReplaySession(options, plan)
        replay.guard(lambda: install_replay(replay))
        atexit.register(replay.close)
        return replay
    session = MeasuringSession(options, plan)
    session.guard(lambda: install(session))
    atexit.register(session.close)
    return session


def install(session: MeasuringSession) -> None:
    """Install hooks that keep the weights where they are.

    Args:
        session: what is told.
    """
    session.loaders.install()
    _watch_iterators(session)
    _watch_construction(session)
    _neutralise_steps(session)
    _watch_backward(session)
    _keep_from_clipping()
    session.class_weights.install(session.guard)
    if torch.distributed.is_available():
        keep_gradients_apart()
        if session.plan.probe:
            session.reread.talk.install()
    _watch_scaling(session)
    _watch_autocast(session)


def install_replay(session: ReplaySession) -> None:
    """Install hooks that leave the training as it is.

    Args:
        session: what is told.
    """
    session.loaders.install()
    _watch_iterators(session)
    _watch_construction(session)
    _watch_backward(session)

    def before(optimizer: Any, args: Any, kwargs: Any) -> Any:
        times = itertools.count()  # that a closure returned in this step
        act = partial(_before_replayed_step, session, optimizer, times)
        return when_gradients_are_there(args, kwargs, act)

    register_optimizer_step_pre_hook(eager(before))
    register_optimizer_step_post_hook(
        eager(lambda optimizer, args, kwargs: session.guard(lambda: session.after_step(optimizer)))
    )


def _before_replayed_step(session: ReplaySession, optimizer: Any, times: Iterator[int]) -> None:
    again = next(times) > 0
    session.guard(lambda: session.before_step(optimizer, again=again))


def _watch_iterators(session: MeasuringSession) -> None:
    """A pass begins: other random numbers are wanted before its order is drawn."""
    base = dataloader._BaseDataLoaderIter
    begun = base.__init__

    @functools.wraps(begun)
    def __init__(iterator: Any, loader: Any) -> None:
        session.guard(lambda: session.before_iterator(loader))
        begun(iterator, loader)

    setattr(base, "__init__", __init__)  # noqa: B010 - mypy forbids a plain assignment to a method


def _watch_construction(session: MeasuringSession) -> None:
    """An optimizer is made, and a module's forward pass begins: the weights can be put in."""
    base: Any = torch.optim.Optimizer
    made = base.__init__

    @functools.wraps(made)
    def __init__(optimizer: Any, *args: Any, **kwargs: Any) -> None:
        made(optimizer, *args, **kwargs)
        session.guard(lambda: session.made(optimizer))

    base.__init__ = __init__

    def forward(module: nn.Module, args: Any) -> None:  # noqa: ARG001
        if not torch.compiler.is_compiling():
            session.guard(session.forward)

    session.forward_hook = nn.modules.module.register_module_forward_pre_hook(forward)


def _neutralise_steps(session: MeasuringSession) -> None:
    base: Any = torch.optim.Optimizer

    def profile_hook_step(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def step(optimizer: Any, *args: Any, **kwargs: Any) -> Any:
            if session.epochs.backwards == 0 and _only_makes_state(optimizer):
                return original(optimizer, *args, **kwargs)
            given: Any = (optimizer, *args)
            for hook in list(optimizer._optimizer_step_pre_hooks.values()):
                changed = hook(optimizer, given, kwargs)
                given, kwargs = changed if isinstance(changed, tuple) else (given, kwargs)
            closure = given[1] if len(given) > 1 else kwargs.get("closure")
            with torch.enable_grad():
                result = closure() if callable(closure) else None
            session.guard(lambda: session.step(optimizer))
            for hook in list(optimizer._optimizer_step_post_hooks.values()):
                hook(optimizer, given, kwargs)
            return result

        return step

    base.profile_hook_step = staticmethod(profile_hook_step)


def _only_makes_state(optimizer: Any) -> bool:
    """Whether a step moves nothing: torch.distributed.checkpoint takes one to have the state that it saves."""
    groups = optimizer.param_groups
    if any(float(group.get("lr", 1.0)) for group in groups):
        return False
    return not any(reaches(p.grad) for group in groups for p in group["params"] if p.grad is not None)


def _watch_backward(session: MeasuringSession) -> None:
    original = torch.autograd.backward

    @functools.wraps(original)
    def backward(*args: Any, **kwargs: Any) -> None:
        session.guard(session.before_backward)
        original(*args, **kwargs)
        session.guard(session.after_backward)

    torch.autograd.backward = backward


def _keep_from_clipping() -> None:
    original = torch.nn.utils.clip_grad_norm_

    @functools.wraps(original)
    def clip_grad_norm_(parameters: Any, max_norm: float, *args: Any, **kwargs: Any) -> torch.Tensor:  # noqa: ARG001
        listed = list(parameters) if isinstance(parameters, types.GeneratorType) else parameters
        return original(listed, float("inf"), *args, **kwargs)  # the factor is 1

    def clip_grad_value_(*args: Any, **kwargs: Any) -> None:
        """Leave the gradients as they are."""

    def clip_grads_with_norm_(*args: Any, **kwargs: Any) -> None:
        """Leave the gradients as they are."""

    for place in (torch.nn.utils, torch.nn.utils.clip_grad):
        for name, function in (
            ("clip_grad_norm_", clip_grad_norm_),
            ("clip_grad_value_", clip_grad_value_),
            ("clip_grads_with_norm_", clip_grads_with_norm_),
        ):
            if hasattr(place, name):
                setattr(place, name, function)


def _watch_scaling(session: MeasuringSession) -> None:
    scaler_class: Any = torch.amp.GradScaler
    scale, step = scaler_class.scale, scaler_class.step

    @functools.wraps(scale)
    def scaled(scaler: Any, outputs: Any) -> Any:
        result = scale(scaler, outputs)
        if scaler.is_enabled():
            session.guard(lambda: session.scaled(float(scaler.get_scale())))
        return result

    @functools.wraps(step)
    def stepped(scaler: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        if not scaler.is_enabled():
            return step(scaler, optimizer, *args, **kwargs)
        session.guard(lambda: session.scaler_steps(optimizer))
        result = step(scaler, optimizer, *args, **kwargs)
        session.guard(lambda: session.scaler_stepped(optimizer))
        return result

    scaler_class.scale, scaler_class.step = scaled, stepped


def _watch_autocast(session: MeasuringSession) -> None:
    autocast: Any = torch.amp.autocast_mode.autocast
    entered = autocast.__enter__

    @functools.wraps(entered)
    def __enter__(context: Any) -> Any:
        if not torch.compiler.is_compiling() and getattr(context, "_enabled", False):
            session.guard(lambda: session.autocast(context.fast_dtype))
        return entered(context)

    autocast.__enter__ = __enter__
