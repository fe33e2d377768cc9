"""LayerTape: watches a forward pass for operations on parameters, so that one backward pass does for all samples.

It sees functions, not modules: a layer of the user's own that calls `F.linear` is seen as well, and a model's modules
are left alone. A parameter that goes into any other function is *free*: its gradients are taken in another way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode

from tvgrad.errors import TvgradError
from tvgrad.problem.layer_uses import (
    BroadcastUse,
    ConvolutionUse,
    EmbeddingUse,
    LayerUse,
    LinearUse,
    NormUse,
)
from tvgrad.vectors.parameters import Weights


class MixedSamples(TvgradError):
    """A layer's output does not have samples in its first dimension, so that it cannot tell them apart."""


@dataclass(frozen=True)
class Seen:
    """A use on the tape.

    Attributes:
        use: the operation.
        edge: where the gradient by its output is to be had; None on a tape that takes no gradients.
        version: of its input, which an operation in place would have changed since.
    """

    use: LayerUse
    edge: GradientEdge | None
    version: int


class LayerTape(TorchFunctionMode):
    """While it is entered, operations on the parameters are noted.

    Attributes:
        seen: the uses, in order.
        free: names of parameters that went into functions whose gradients are not known here.
        compact: whether no square was made of a tensor with a row for every sample.
    """

    def __init__(self, leaves: Mapping[str, torch.Tensor], *, differentiate: bool = True) -> None:
        """Begin with nothing.

        Args:
            leaves: name -> parameter, the very tensors that the model is called with.
            differentiate: whether gradients by the outputs will be asked for.
        """
        super().__init__()
        self.seen: list[Seen] = []
        self.free: set[str] = set()
        self.compact = True
        self._names = {id(tensor): name for name, tensor in leaves.items()}
        self._differentiate = differentiate

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        reader = READERS.get(getattr(func, "__name__", ""))
        use = reader(func, *args, **kwargs) if reader is not None and self._given(args, kwargs) else None
        if use is None or not self._takes_samples(use):
            result = func(*args, **kwargs)
            given = self._given(args, kwargs)
            # Asking a parameter for its shape is no use of it.
            if given and any(tensor.requires_grad for tensor in _tensors(result)):
                self.free |= given
            return result
        return self._noted(use)

    def _given(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> set[str]:
        """Names of the parameters among arguments."""
        found = {id(tensor) for tensor in _tensors([args, kwargs])}
        return {self._names[key] for key in found if key in self._names}

    def _takes_samples(self, use: LayerUse) -> bool:
        """Whether the parameters stand where they belong, and not in the place of the input."""
        return id(use.input) not in self._names

    def _noted(self, use: LayerUse) -> torch.Tensor:
        weight, bias = (
            part.detach() if part is not None and id(part) in self._names else part for part in (use.weight, use.bias)
        )
        output = use.output(weight, bias)
        version = use.input._version if isinstance(use.input, torch.Tensor) else 0
        if not self._differentiate:
            self.seen.append(Seen(use, None, version))
            return output
        given = output
        if not output.requires_grad:
            # A copy, because an operation in place is not allowed on a tensor that asks for a gradient itself.
            output = output.detach().requires_grad_()
            given = output.clone()
        self.seen.append(Seen(use, get_gradient_edge(output), version))
        return given

    def by_sample(self, scalar: torch.Tensor, count: int, names: Mapping[str, torch.Tensor]) -> Weights:
        """Differentiate a sum over samples for each sample.

        Args:
            scalar: the sum.
            count: of samples.
            names: name -> parameter.

        Returns:
            Name -> tensor of shape (count, *parameter), zeros for a parameter without a part in it. Free parameters
            are left out.

        Raises:
            MixedSamples: the uses do not keep samples apart.
        """
        wanted = {id(leaf): name for name, leaf in names.items() if name not in self.free}
        found: Weights = {}
        for use, gradient in self._differentiated(scalar, count, wanted):
            with torch.no_grad():
                for parameter, part in _parts(use, gradient, wanted):
                    name, rows = wanted[id(parameter)], _by_samples(part, count)
                    found[name] = found[name] + rows if name in found else rows
        for name, leaf in names.items():
            if name not in self.free and name not in found:
                found[name] = leaf.detach().new_zeros(count, *leaf.shape)
        return found

    def squares(
        self, scalars: Iterable[torch.Tensor], factor: torch.Tensor, names: Mapping[str, torch.Tensor]
    ) -> Weights:
        r"""Add up squares of what `by_sample` gives, without a tensor for every sample where there is no need of it.

        Of a linear layer on one row a sample, the gradient is an outer product $\delta a^\top$, and the sum of squares
        $\sum_i f_i \delta_i^2 (a_i^2)^\top$: one product of matrices, for all scalars at once.

        Args:
            scalars: sums over samples, one after another.
            factor: of each sample, shape (samples,), in float64.
            names: name -> parameter.

        Returns:
            Name -> float64, shaped like the parameter: the sum over scalars and samples of factor times square. Free
            parameters are left out.

        Raises:
            MixedSamples: the uses do not keep samples apart.
        """  # noqa: DOC502 - raised below
        wanted = {id(leaf): name for name, leaf in names.items() if name not in self.free}
        often = Counter(id(part) for one in self.seen for part in (one.use.weight, one.use.bias) if part is not None)
        found = {
            name: torch.zeros_like(leaf, dtype=torch.float64) for name, leaf in names.items() if name not in self.free
        }
        outer: dict[int, tuple[LayerUse, torch.Tensor]] = {}
        for scalar in scalars:
            rows: Weights = {}
            for use, gradient in self._differentiated(scalar, len(factor), wanted):
                once = all(part is None or often[id(part)] == 1 for part in (use.weight, use.bias))
                with torch.no_grad():
                    if once and len(gradient) == len(factor) and use.single_rows(gradient):
                        squared = gradient.double().square()
                        known = outer.get(id(use))
                        outer[id(use)] = (use, squared if known is None else known[1].add_(squared))
                        continue
                    for parameter, part in _parts(use, gradient, wanted):
                        name, row = wanted[id(parameter)], _by_samples(part, len(factor))
                        rows[name] = rows[name] + row if name in rows else row
            self.compact = self.compact and not rows
            for name, part in rows.items():
                found[name] += torch.tensordot(factor, part.double().square(), 1)
        for use, squared in outer.values():
            weighed = squared * factor[:, None]
            if use.weight is not None and id(use.weight) in wanted:
                found[wanted[id(use.weight)]] += weighed.T @ use.input.detach().double().square()
            if use.bias is not None and id(use.bias) in wanted:
                found[wanted[id(use.bias)]] += weighed.sum(0)
        return found

    def _differentiated(
        self, scalar: torch.Tensor, count: int, wanted: Mapping[int, str]
    ) -> Iterator[tuple[LayerUse, torch.Tensor]]:
        """Uses of wanted parameters, with the gradient by each one's output."""
        used = [one for one in self.seen if {id(one.use.weight), id(one.use.bias)} & wanted.keys()]
        if any(isinstance(one.use.input, torch.Tensor) and one.use.input._version != one.version for one in used):
            raise MixedSamples("an input was changed in place after it was used")
        edges = [one.edge for one in used if one.edge is not None]
        gradients: Sequence[torch.Tensor | None] = ()
        if edges and scalar.requires_grad:
            gradients = torch.autograd.grad(scalar, edges, retain_graph=True, allow_unused=True)
        for one, gradient in zip(used, gradients, strict=False):
            if gradient is None:
                continue
            if len(gradient) % count:
                raise MixedSamples(f"{len(gradient)} rows belong to {count} samples")
            yield one.use, gradient


def _by_samples(part: torch.Tensor, count: int) -> torch.Tensor:
    """Rows of one sample lie together where a model folds another dimension into the first."""
    return part if len(part) == count else part.unflatten(0, (count, -1)).sum(1)


def _tensors(things: Any) -> Iterator[torch.Tensor]:
    if isinstance(things, torch.Tensor):
        yield things
    elif isinstance(things, (tuple, list)):
        for thing in things:
            yield from _tensors(thing)
    elif isinstance(things, dict):
        yield from _tensors(list(things.values()))


def _parts(
    use: LayerUse, gradient: torch.Tensor, wanted: Mapping[int, str]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    if use.weight is not None and id(use.weight) in wanted:
        yield use.weight, use.of_weight(gradient)
    if use.bias is not None and id(use.bias) in wanted:
        yield use.bias, use.of_bias(gradient)


def _linear(func: Any, *args: Any, **kwargs: Any) -> LayerUse | None:
    use = LinearUse(*args, **kwargs)
    return use if use.input.ndim > 1 else None


def _convolution(func: Any, *args: Any, **kwargs: Any) -> LayerUse | None:
    use = ConvolutionUse(*args, **kwargs)
    return use if use.input.ndim == len(use.kernel) + 2 else None


def _layer_norm(
    func: Any,
    input: torch.Tensor,  # noqa: A002
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> LayerUse | None:
    return NormUse(
        lambda w, b: F.layer_norm(input, normalized_shape, w, b, eps), input, weight, bias, len(normalized_shape)
    )


def _rms_norm(
    func: Any,
    input: torch.Tensor,  # noqa: A002
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None = None,
    eps: float | None = None,
) -> LayerUse | None:
    return NormUse(lambda w, _: F.rms_norm(input, normalized_shape, w, eps), input, weight, None, len(normalized_shape))


def _group_norm(
    func: Any,
    input: torch.Tensor,  # noqa: A002
    num_groups: int,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> LayerUse | None:
    return NormUse(lambda w, b: F.group_norm(input, num_groups, w, b, eps), input, weight, bias, 0)


def _batch_norm(
    func: Any,
    input: torch.Tensor,  # noqa: A002
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> LayerUse | None:
    if training or input.ndim < 2:
        return None

    def run(scale: torch.Tensor | None, shift: torch.Tensor | None) -> torch.Tensor:
        return F.batch_norm(input, running_mean, running_var, scale, shift, False, momentum, eps)

    return NormUse(run, input, weight, bias, 0)


def _embedding(
    func: Any,
    input: torch.Tensor,  # noqa: A002
    weight: torch.Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> LayerUse | None:
    if func is not F.embedding or max_norm is not None or scale_grad_by_freq or input.ndim < 2:
        return None
    return EmbeddingUse(input, weight, padding_idx)


def _added(kind: str) -> Callable[..., LayerUse | None]:
    def read(func: Any, left: Any, right: Any, **rest: Any) -> LayerUse | None:
        if rest or not (isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor)):
            return None
        for parameter, other in ((left, right), (right, left)):
            fits = parameter.ndim < other.ndim or (parameter.ndim == other.ndim and parameter.shape[0] == 1)
            wide = fits and other.shape == torch.broadcast_shapes(other.shape, parameter.shape)
            if wide and parameter.is_leaf and parameter.requires_grad:
                return BroadcastUse(kind, parameter, other)
        return None

    return read


def _expanded(func: Any, parameter: torch.Tensor, *shape: Any, **rest: Any) -> LayerUse | None:
    sizes = shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
    if rest or not parameter.requires_grad or (len(sizes) == parameter.ndim and parameter.shape[0] != 1):
        return None
    return BroadcastUse("expand", parameter, tuple(sizes))


READERS: dict[str, Callable[..., LayerUse | None]] = {
    "linear": _linear,
    "conv1d": _convolution,
    "conv2d": _convolution,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "group_norm": _group_norm,
    "batch_norm": _batch_norm,
    "embedding": _embedding,
    "expand": _expanded,
    **dict.fromkeys(("add", "__add__", "__radd__"), _added("add")),
    **dict.fromkeys(("mul", "__mul__", "__rmul__"), _added("mul")),
}
"""Functions by name, as torch's modules and operators call them; layers that call others have free parameters."""
