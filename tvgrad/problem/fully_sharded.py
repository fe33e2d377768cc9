"""FullySharded: a model that FSDP2 (`fully_shard`) has spread over all processes, its own way of working aside.

What is read of PyTorch's state of such a module stands here, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed, nn
from torch.utils._pytree import tree_map

from tvgrad.errors import TvgradError
from tvgrad.vectors.spread import is_spread, own_part, require_one_mesh

HOOKS_FROM = "torch.distributed.fsdp"


class FullySharded:
    """Modules whose parameters are gathered for their forward and backward passes, and spread in between.

    Attributes:
        model: the whole model.
        count: of processes.
    """

    def __init__(self, model: nn.Module) -> None:
        """Look at the model, which is spread now.

        Args:
            model: whose parameters are all spread.

        Raises:
            TvgradError: they are spread in another way than `fully_shard` over all processes, in a narrower format, or
                what is done with their gradients would change the training.
        """
        self.model = model
        self._modules = sharded_modules(model)
        if not self._modules:
            raise TvgradError(
                "the parameters are spread by something else than fully_shard (tensor parallelism), and nothing says "
                "what a process needs of them: use fully_shard over all processes"
                if any(map(is_spread, model.parameters()))
                else "fully_shard has not spread this model: use tvgrad.Objective"
            )
        require_one_mesh(self.parameters())
        self.count = distributed.get_world_size()
        self._groups = list(_groups(self._modules))
        self._refuse()

    def parameters(self) -> dict[str, nn.Parameter]:
        """The parameters, spread; those that a forward pass left whole would be forgotten at the next one."""
        self.reshard()
        return dict(self.model.named_parameters())

    def parts(self) -> dict[str, torch.Tensor]:
        """What this process holds of each parameter, in the model's own memory."""
        return {name: own_part(parameter.detach()) for name, parameter in self.parameters().items()}

    @property
    def divisor(self) -> float:
        """What the sum of the processes' gradients is divided by when they are added up."""
        factor = self._groups[0].gradient_divide_factor if self._groups else None
        return float(self.count if factor is None else factor)

    @contextmanager
    def holding(self, parts: Mapping[str, torch.Tensor]) -> Generator[None]:
        """Give the model other weights for a while.

        Args:
            parts: name -> what this process is to hold of the parameter; others stay as they are.

        Yields:
            Nothing.
        """
        held = {name: part for name, part in self.parts().items() if name in parts}
        before = {name: part.clone() for name, part in held.items()}
        try:
            self._put(held, parts)
            yield
        finally:
            self._put(held, before)

    @contextmanager
    def gradients(self) -> Generator[None]:
        """Let a backward pass leave its gradients, and nothing else, in `parameter.grad`; then put back what was there.

        Yields:
            Nothing; the model has no gradients when it begins.

        Raises:
            TvgradError: there are gradients that were not sent yet: they would be sent now.
        """
        if any(_waits(one) for group in self._groups for one in group.fsdp_params):
            raise TvgradError(
                "gradients are being accumulated that no process has sent yet (set_requires_gradient_sync(False)): "
                "compute full-batch gradients between two steps"
            )
        parameters = list(self.parameters().values())
        before = [parameter.grad for parameter in parameters]
        modes = [(group.reduce_grads, group.all_reduce_grads) for group in self._groups]
        for parameter in parameters:
            parameter.grad = None
        for group in self._groups:
            group.reduce_grads = group.all_reduce_grads = True
        try:
            yield
        finally:
            for group, mode in zip(self._groups, modes, strict=True):
                group.reduce_grads, group.all_reduce_grads = mode
            for parameter, gradient in zip(parameters, before, strict=True):
                parameter.grad = gradient

    @contextmanager
    def whole(self) -> Generator[None]:
        """Let every process hold all parameters, as a model has them that was never spread.

        Yields:
            Nothing. The modules work as before `fully_shard`: no process waits for another one in them.
        """
        hooks = [one for module in self.model.modules() for one in (module._forward_pre_hooks, module._forward_hooks)]
        before = [dict(one) for one in hooks]
        try:
            self.become_whole()
            yield
        finally:
            for one, kept in zip(hooks, before, strict=True):  # in their order
                one.clear()
                one.update(kept)
            self.reshard()

    def become_whole(self) -> None:
        """Let every process hold all parameters from now on, as a model has them that was never spread."""
        for module in self._modules:
            module.unshard()
        for module in self.model.modules():
            for hooks in (module._forward_pre_hooks, module._forward_hooks):
                for key in [key for key, hook in hooks.items() if _is_of_fsdp(hook)]:
                    del hooks[key]
        for module in self._modules:
            _cast_as_before(module)

    def stay_whole(self) -> None:
        """Let no call of the model's own methods spread its parameters again: `state_dict`, say, does."""
        self.become_whole()
        for group in self._groups:
            for name in ("unshard", "wait_for_unshard", "reshard", "_to_sharded", "_to_sharded_post_forward"):
                setattr(group, name, _nothing)
            for one in group.fsdp_params:
                one.reset_sharded_param = _nothing

    def reshard(self) -> None:
        """Forget parameters that are gathered: they would go on as they are when the weights change."""
        for module in self._modules:
            module.reshard()

    def _put(self, held: Mapping[str, torch.Tensor], parts: Mapping[str, torch.Tensor]) -> None:
        self.reshard()
        with torch.no_grad():
            for name, part in parts.items():
                held[name].copy_(part)

    def _refuse(self) -> None:
        unmade = next((name for name, one in self.parameters().items() if one.is_meta), None)
        if unmade is not None:
            raise TvgradError(f"{unmade} is on device 'meta' and has no values: load the model's weights first")
        policies: list[tuple[Any, tuple[str, ...]]]
        policies = [(group.mp_policy, ("param_dtype", "reduce_dtype")) for group in self._groups]
        policies += [(module._get_fsdp_state()._mp_policy, ("output_dtype",)) for module in self._modules]
        for policy, names in policies:
            for name in names:
                narrow = getattr(policy, name)
                if narrow is not None and any(narrow.itemsize < p.dtype.itemsize for p in self.model.parameters()):
                    raise TvgradError(
                        f"fully_shard has a policy of mixed precision ({name} is {str(narrow).removeprefix('torch.')}),"
                        " and full-batch gradients are computed in the parameters' own format: spread the model "
                        "without mp_policy for them"
                    )
        for group in self._groups:
            if group.gradient_divide_factor != self._groups[0].gradient_divide_factor:
                raise TvgradError(
                    "modules divide their gradients by different factors (set_gradient_divide_factor), and a mean "
                    "over samples has one: set the same for all of them"
                )
        for name, parameter in self.parameters().items():
            if getattr(parameter, "_post_accumulate_grad_hooks", None):
                raise TvgradError(
                    f"something is done with the gradient of {name} as soon as there is one "
                    "(register_post_accumulate_grad_hook): remove the hook while full-batch gradients are computed"
                )


def sharded_modules(model: nn.Module) -> list[Any]:
    """Find the modules that `fully_shard` was called on.

    Args:
        model: any.

    Returns:
        They, whether their parameters are spread or whole at the moment.
    """
    return [module for module in model.modules() if hasattr(module, "_get_fsdp_state")]


def at_work(modules: Iterable[Any]) -> bool:
    """Tell whether modules gather and spread their parameters, which they do not inside `gathered`.

    Args:
        modules: some that `fully_shard` was called on.

    Returns:
        Whether one does.
    """
    return any(_is_of_fsdp(hook) for module in modules for hook in module._forward_pre_hooks.values())


@contextmanager
def gathered(model: nn.Module) -> Generator[nn.Module]:
    """Let every process hold a whole model that `fully_shard` has spread, where it fits; of every process.

    Inside, its parameters are ordinary ones and everything that wants a model works: `tvgrad.Objective(model, loss,
    data, group=torch.distributed.group.WORLD)` with its products, outputs and gradients of single samples. What is done
    to the weights inside is lost, and an optimizer that is made inside moves nothing afterwards.

    Args:
        model: a model, after `fully_shard`.

    Yields:
        The same model, whole.

    Raises:
        TvgradError: its parameters are spread in a way that is not read, or in a narrower format.

    Examples:
        >>> import torch, tvgrad
        >>> model = torch.nn.Linear(2, 1)  # a model that is not spread is whole
        >>> with tvgrad.gathered(model) as whole:
        ...     whole is model
        True
    """  # noqa: DOC502 - raised by FullySharded
    if not at_work(sharded_modules(model)):
        yield model
        return
    with FullySharded(model).whole():
        yield model


def _groups(modules: Iterable[Any]) -> Iterator[Any]:
    """PyTorch's groups of parameters that are gathered together, each once."""
    seen = set()
    for module in modules:
        state = module._get_fsdp_state()
        several = getattr(state, "_fsdp_param_groups", None)
        for group in [state._fsdp_param_group] if several is None else several:
            if group is not None and id(group) not in seen:
                seen.add(id(group))
                yield group


def _waits(parameter: Any) -> bool:
    """Whether a gradient of whole tensors is kept until it is sent."""
    unsharded = getattr(parameter, "_unsharded_param", None)
    return any(
        one is not None
        for one in (getattr(parameter, "unsharded_accumulated_grad", None), getattr(unsharded, "grad", None))
    )


def _cast_as_before(module: Any) -> None:
    """Cast inputs and outputs of a module by its policy, which the hooks that are gone have done."""
    policy = module._get_fsdp_state()._mp_policy
    if policy.cast_forward_inputs and policy.param_dtype is not None:

        def inputs(_: nn.Module, args: Any, kwargs: Any) -> Any:
            return _cast((args, kwargs), policy.param_dtype)

        module.register_forward_pre_hook(inputs, prepend=True, with_kwargs=True)
    if policy.output_dtype is not None:
        module.register_forward_hook(lambda _, args, output: _cast(output, policy.output_dtype))  # noqa: ARG005


def _cast(values: Any, dtype: torch.dtype) -> Any:
    """Values with all tensors of floating-point numbers in a format."""

    def cast(one: Any) -> Any:
        return one.to(dtype) if isinstance(one, torch.Tensor) and one.is_floating_point() else one

    return tree_map(cast, values)


def _nothing(*args: Any, **kwargs: Any) -> None:
    """What a group of parameters does that stay whole."""


def _is_of_fsdp(hook: object) -> bool:
    return str(getattr(hook, "__module__", "")).startswith(HOOKS_FROM)
