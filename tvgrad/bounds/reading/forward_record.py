"""Forward records: what the forward of a model does, written down while PyTorch runs it.

The model runs as it runs in training: on tensors of its own kind, with gradients, in plain Python. A
`TorchFunctionMode` sees every call that takes a tensor, attributes included, before it happens. Layers and activations
of `torch.nn`, a few functions and sums are written down; whatever else touches a tensor is refused by its name. So no
number can leave a tensor: a branch cannot depend on data or weights, nothing can be changed unseen, and there are no
stand-ins that a branch could tell from tensors. A `TorchDispatchMode` below refuses operations that come from anywhere
else. A value is known by its tensor, with the tensor's version and its place in the graph of derivatives, so that an
operation in place is followed, and an old view of what was changed is refused.

What is left is state that is no tensor: chance, the number of samples, a counter. Forward therefore runs several times
(module module_reader), and the records have to be the same.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._python_dispatch import TorchDispatchMode

from tvgrad.bounds.activations.registry import is_registered

INPUT, SUM = "the input", "a sum"
REMEDY = (
    "write forward with submodules, smooth activations, torch.flatten(x, 1) and sums such as x + self.body(x), or use "
    "the estimates, which take any model"
)


def _flattening(start_dim: int = 0, end_dim: int = -1) -> nn.Flatten:
    return nn.Flatten(start_dim, end_dim)


# what stands for a function: a module with its options, or the name of an activation
_FUNCTIONS: dict[str, Callable[..., nn.Module] | str] = {
    "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "silu": nn.SiLU, "gelu": nn.GELU, "softplus": nn.Softplus,
    "logsigmoid": nn.LogSigmoid, "tanhshrink": nn.Tanhshrink, "softsign": nn.Softsign, "elu": nn.ELU, "celu": nn.CELU,
    "sin": "sin", "flatten": _flattening, "relu": nn.ReLU, "leaky_relu": nn.LeakyReLU,
}  # fmt: skip
_PLACES = (torch, functional, torch.Tensor)
_OF: dict[Any, str] = {getattr(place, name): name for place in _PLACES for name in _FUNCTIONS if hasattr(place, name)}
_SUMS = (torch.add, torch.Tensor.add, torch.Tensor.add_, torch.Tensor.__add__, torch.Tensor.__iadd__)
_SIZES = {
    f"torch.Tensor.{name}" for name in ("size", "dim", "ndimension", "numel", "nelement", "__len__", "shape.__get__",
                                        "ndim.__get__")
}  # fmt: skip


@dataclass(frozen=True)
class RecordedCall:
    """One thing that forward does.

    Attributes:
        result: name of the value that it makes.
        part: a module, the name of an activation, or `SUM`.
        path: of a submodule; of anything else what to call it.
        own: whether the part is a submodule.
        values: names of what goes in: one value, or the two terms of a sum.
    """

    result: str
    part: nn.Module | str
    path: str
    own: bool
    values: tuple[str, ...]

    @property
    def told(self) -> tuple[str, ...]:
        """The call in words, to compare two records; a module that stands for a function is its options."""
        part = self.path if self.own else str(self.part)
        return (self.result, part, self.path, *self.values)


@dataclass
class ForwardRecord:
    """What forward does with its input.

    Attributes:
        calls: in order.
        result: name of what it returns; `INPUT` for what was given.
        problem: why it could not be followed; empty where it was.
        failed: what forward itself raised, in words; empty where it ended.
        random: whether it drew random numbers.
        changed: whether it changed parts or weights of the model.
    """

    calls: list[RecordedCall] = field(default_factory=list)
    result: str = ""
    problem: str = ""
    failed: str = ""
    random: bool = False
    changed: bool = False

    @property
    def told(self) -> list[tuple[str, ...]]:
        """The calls in words."""
        return [call.told for call in self.calls]

    @property
    def needed(self) -> list[RecordedCall]:
        """The calls that what is returned depends on."""
        wanted, found = {self.result}, list[RecordedCall]()
        for call in reversed(self.calls):
            if call.result in wanted:
                wanted.update(call.values)
                found.append(call)
        return found[::-1]

    @property
    def shared(self) -> set[str]:
        """Names of values that more than one thing looks at, the caller being one."""
        users = [value for call in self.needed for value in set(call.values)] + [self.result]
        return {value for value in users if users.count(value) > 1}


class _Refused(Exception):  # noqa: N818 - it ends a forward that cannot be followed
    """A forward that cannot be followed."""


@dataclass(frozen=True)
class _Known:
    """A tensor that is a value: kept alive, so that its id stays its own."""

    name: str
    tensor: torch.Tensor
    version: int
    node: object


def record_forward(module: nn.Module, inputs: torch.Tensor, leaf: Callable[[nn.Module], bool]) -> ForwardRecord:
    """Run a module and write down what it does.

    Args:
        module: a copy that may be changed: it is given hooks for the time of the run.
        inputs: samples of the module's kind.
        leaf: tells the modules that are one step.

    Returns:
        What it did; with a reason where it could not be followed.
    """
    record = ForwardRecord()
    follow = _Follow(module, inputs, record)
    handles = []
    for path, part in module.named_modules(remove_duplicate=True):
        enter, leave = (follow.enter_leaf, follow.leave_leaf) if leaf(part) else (follow.enter, follow.leave)
        handles.append(part.register_forward_pre_hook(_bound(enter, path), with_kwargs=True))
        handles.append(part.register_forward_hook(_bound(leave, path)))
    chance, state = _chance(), _state(module)
    try:
        no_hooks = torch.autograd.graph.disable_saved_tensors_hooks("hooks on saved tensors")
        with torch.enable_grad(), no_hooks, follow, _Below(follow):
            returned = module(inputs)
        if not record.problem:
            record.result = follow.returned(returned)
    except _Refused:
        pass
    except Exception as error:  # whatever a user's forward raises
        record.failed = (str(error).strip() or type(error).__name__).splitlines()[0]
        if isinstance(error, TypeError) and not follow.inside and "required positional argument" in record.failed:
            record.problem = f"{follow.place} takes more than one input: give it one tensor"
    finally:
        for handle in handles:
            handle.remove()
    record.random = not _same(chance, _chance())
    record.changed = _state(module) != state
    return record


def _bound(hook: Callable[..., None], path: str) -> Callable[..., None]:
    return lambda module, *arguments: hook(path, module, *arguments)


def _chance() -> tuple[Any, ...]:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 - whether it is used


def _state(module: nn.Module) -> list[tuple[str, int, int]]:
    """Which modules, parameters and buffers there are, in which version, and the mode."""
    parts = [(path, id(part), int(part.training)) for path, part in module.named_modules(remove_duplicate=False)]
    tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return [*parts, *((name, id(each), each._version) for name, each in tensors)]


def _same(before: tuple[Any, ...], after: tuple[Any, ...]) -> bool:
    numpy_same = all(np.array_equal(one, other) for one, other in zip(before[1], after[1], strict=True))
    return before[0] == after[0] and numpy_same and torch.equal(before[2], after[2])


class _Follow(TorchFunctionMode):
    """Sees every call that takes a tensor."""

    def __init__(self, module: nn.Module, inputs: torch.Tensor, record: ForwardRecord) -> None:
        super().__init__()
        self.record = record
        self.inside = 0  # how many steps are being taken, whose own operations are not looked at
        self._known: dict[int, _Known] = {}
        self._tensors = {id(each): name for name, each in [*module.named_parameters(), *module.named_buffers()]}
        self._places: list[str] = []
        self._name(INPUT, inputs)

    def refuse(self, problem: str) -> None:
        """Keep the first reason, whatever forward does with the exception."""
        self.record.problem = self.record.problem or problem
        raise _Refused(problem)

    @property
    def place(self) -> str:
        """The module whose forward runs."""
        return self._places[-1] if self._places else "the model"

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Take one step."""
        kwargs = kwargs or {}
        if self.inside:
            return func(*args, **kwargs)
        name = resolve_name(func) or ""
        if name in _SIZES:
            return func(*args, **kwargs)
        called = _OF.get(func, str(getattr(func, "__name__", func)))
        if called == "_set_grad_enabled":
            if not args[0]:
                self.refuse(f"{self.place} computes a part without gradients (torch.no_grad): leave it out, {REMEDY}")
            return func(*args, **kwargs)
        if called == "__get__":
            called = name.split(".")[-2]
        self._check_gradients()
        part, options, own = self._step(func, called, args, kwargs)
        values = tuple(self._value(one) for one in args[:2] if isinstance(one, torch.Tensor))
        given = [one for one in args if isinstance(one, torch.Tensor)]
        self.inside += 1
        try:
            self._begin(RecordedCall("", part, f"{self.place}, in {options},", own, values))
            made = func(*args, **kwargs)
        finally:
            self.inside -= 1
        self._end(made, given)
        return made

    def _step(self, func: Any, called: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, str, bool]:
        """Say what a function is."""
        plain = called.strip("_")
        tensors = [one for one in (*args, *kwargs.values()) if isinstance(one, torch.Tensor)]
        direct = [self._tensors[id(one)] for one in tensors if id(one) in self._tensors]
        if direct:
            self.refuse(
                f"{self.place} uses its tensor {direct[0]} directly: put it into a module of torch.nn, such as "
                "nn.Linear"
            )
        if func in _SUMS:
            if len(args) != 2 or len(tensors) != 2 or kwargs:
                self.refuse(f"{self.place} adds something other than two of its own tensors: {REMEDY}")
            return SUM, "a sum", False
        builder = _FUNCTIONS.get(called) if func in _OF else None
        if builder is None or len(tensors) != 1 or not isinstance(args[0], torch.Tensor):
            self.refuse(f"{self.place} calls {plain}, for which no bounds are known: {REMEDY}")
        try:
            if isinstance(builder, str) and (args[1:] or kwargs):
                raise TypeError
            return (builder if isinstance(builder, str) else builder(*args[1:], **kwargs)), plain, False  # type: ignore[misc]
        except TypeError:
            self.refuse(f"{self.place} calls {plain} with options that are not known: {REMEDY}")
            raise

    def _check_gradients(self) -> None:
        if not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
            self.refuse(f"{self.place} computes a part without gradients: leave torch.no_grad out, {REMEDY}")

    def _name(self, name: str, tensor: torch.Tensor) -> None:
        self._known[id(tensor)] = _Known(name, tensor, tensor._version, tensor.grad_fn)

    def _value(self, tensor: torch.Tensor) -> str:
        """The name of a tensor that goes into a step."""
        known = self._known.get(id(tensor))
        if known is None:
            self.refuse(f"{self.place} uses a tensor that is none of its own: {REMEDY}")
            raise AssertionError
        if known.version != tensor._version or known.node is not tensor.grad_fn:
            self.refuse(f"{self.place} uses a tensor that was changed in place by another name: {REMEDY}")
        return known.name

    def _begin(self, call: RecordedCall) -> None:
        name = f"v{len(self.record.calls)}"
        self.record.calls.append(RecordedCall(name, call.part, call.path, call.own, call.values))

    def _end(self, made: Any, given: list[torch.Tensor]) -> None:
        """Name what the last step made, and follow what it changed in place."""
        if not isinstance(made, torch.Tensor):
            self.refuse(f"{self.place} calls what returns {type(made).__name__}: {REMEDY}")
        changed = [one for one in given if one._version != self._known[id(one)].version]
        if any(one is not made for one in changed) or (changed and self._known[id(made)].name == INPUT):
            self.refuse(f"{self.place} changes its input in place: {REMEDY}")
        if any(made is one for one in given) and not changed:  # nothing was done: flattening what is flat
            self.record.calls.pop()
        else:
            self._name(self.record.calls[-1].result, made)

    def enter(self, path: str, module: nn.Module, *_: object) -> None:
        """Note whose forward runs."""
        kind = type(module).__name__
        self._places.append(f"module {path} ({kind})" if path else f"the model ({kind})")

    def leave(self, _: str, __: nn.Module, ___: object, made: object) -> None:
        """Check what a module of modules returns."""
        if not isinstance(made, torch.Tensor):
            self.refuse(f"{self.place} returns {type(made).__name__}: return one tensor of logits")
        self._places.pop()

    def enter_leaf(self, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Begin a step that is a module."""
        self.inside += 1
        if self.inside > 1:
            return
        if len(args) != 1 or kwargs or not isinstance(args[0], torch.Tensor):
            self.refuse(f"{self.place} calls {path} with more than one tensor: {REMEDY}")
        self._check_gradients()
        self._begin(RecordedCall("", module, path, True, (self._value(args[0]),)))

    def leave_leaf(self, _: str, __: nn.Module, args: tuple[Any, ...], made: Any) -> None:
        """End it."""
        if self.inside == 1:
            self._end(made, [args[0]])
        self.inside -= 1

    def returned(self, made: Any) -> str:
        """The name of what the model returns."""
        return self._value(made)


class _Below(TorchDispatchMode):
    """Refuses operations that no step asked for: compiled and scripted functions, extensions."""

    def __init__(self, follow: _Follow) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._follow = follow

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Look at one operation."""
        if not self._follow.inside:
            self._follow.refuse(f"{self._follow.place} runs {func} out of sight: {REMEDY}")
        return func(*args, **(kwargs or {}))


def as_one_step(module: nn.Module) -> bool:
    """Whether a module is read by its class; of any other the forward is followed.

    Args:
        module: the module.

    Returns:
        Whether it is one step of a record.
    """
    own = type(module).__module__.startswith("torch.") and type(module) is not nn.Sequential
    return own or is_registered(type(module))
