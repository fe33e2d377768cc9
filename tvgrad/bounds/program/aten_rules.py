"""What becomes of each aten operation of an exported program: one function each, and the table of all of them."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import fx

from tvgrad.bounds.program.affine import MatrixProduct, Multiple, Product, Sum
from tvgrad.bounds.program.attention import Attention
from tvgrad.bounds.program.cross_entropy import RowsCrossEntropy
from tvgrad.bounds.program.elementwise import InverseRoot, Quotient, Smooth, Square
from tvgrad.bounds.program.lowering import Lowering, Rule, line_of
from tvgrad.bounds.program.normalisation import LayerNorm, Softmax
from tvgrad.bounds.program.operation import UnsupportedProgram
from tvgrad.bounds.program.pieces import Kink, Pieces
from tvgrad.bounds.program.rearrangements import Broadcast, Concatenation, Embedding, Real, Rearrangement, Total
from tvgrad.bounds.program.spatial_rules import SPATIAL_RULES

aten = torch.ops.aten
_IGNORED = -100


def _args(node: fx.Node) -> Any:
    return node.args


def _target(node: fx.Node) -> Any:
    return node.target


def _filled(given: Any, *defaults: Any) -> list[Any]:
    """Arguments, with defaults for those that are left out."""
    return [*given, *defaults[len(given) :]]


def _refuse(node: fx.Node, what: str) -> UnsupportedProgram:
    return UnsupportedProgram(f"{node.target} {what} ({line_of(node)})")


def _shape(node: Any) -> torch.Size:
    shape: torch.Size = node.meta["val"].shape
    return shape


def _scalar(value: Any) -> torch.Tensor:
    return torch.tensor(float(value), dtype=torch.float64)


def _linear(low: Lowering, node: fx.Node) -> int:
    x, weight, *bias = _args(node)
    places = [low.place(x), low.place(weight), *(low.place(one) for one in bias if one is not None)]
    if not all(one.op == "placeholder" for one in (weight, *bias) if one is not None):
        product = low.step(MatrixProduct(), places[0], low.step(Rearrangement(lambda part: part.mT), places[1]))
        return low.step(Sum(), product, places[2]) if len(places) > 2 else product
    return low.layer(_shape(node), *places)


def _product_of_matrices(low: Lowering, node: fx.Node) -> int:
    return low.step(MatrixProduct(), *(low.place(one) for one in _args(node)))


def _addmm(low: Lowering, node: fx.Node) -> int:
    if node.kwargs:
        raise _refuse(node, "with factors has no bounds here")
    product = low.step(MatrixProduct(), low.place(_args(node)[1]), low.place(_args(node)[2]))
    return low.step(Sum(), product, low.place(_args(node)[0]))


def _sum(sign: float) -> Rule:
    def rule(low: Lowering, node: fx.Node) -> int:
        a, b = _args(node)
        factor = sign * float(dict[str, Any](node.kwargs).get("alpha", 1))
        places = [low.real(one) if isinstance(one, fx.Node) else low.constant(_scalar(one)) for one in (a, b)]
        return low.step(Sum(factor), *places)

    return rule


def _product(low: Lowering, node: fx.Node) -> int:
    a, b = _args(node)
    if not isinstance(a, fx.Node):
        a, b = b, a
    if not isinstance(b, fx.Node):
        return low.step(Multiple(float(b)), low.real(a))
    normalised = _by_root_mean_square(node)
    if normalised is not None:
        return low.step(LayerNorm(normalised[1], centred=False), low.place(normalised[0]))
    return low.step(Square(), low.real(a)) if a is b else low.step(Product(), low.real(a), low.real(b))


def _quotient(low: Lowering, node: fx.Node) -> int:
    a, b = _args(node)
    below = low.real(b) if isinstance(b, fx.Node) else low.constant(_scalar(b))
    if not low.exact(below):
        raise _refuse(node, "by what is computed has no bounds here")
    return low.step(Quotient(), low.real(a), below)


def _square(low: Lowering, node: fx.Node) -> int:
    if _args(node)[1] != 2:
        raise _refuse(node, "has bounds for squares alone")
    return low.step(Square(), low.place(_args(node)[0]))


def _moved(low: Lowering, node: fx.Node) -> int:
    if _target(node) is aten.constant_pad_nd.default and len(_args(node)) > 2 and _args(node)[2]:
        raise _refuse(node, "with another number than zero has no bounds here")
    target, rest, kwargs = _target(node), _args(node)[1:], dict[str, Any](node.kwargs)
    if target is aten.view.default or target is aten._unsafe_view.default:
        target = aten.reshape.default
    place = low.step(Rearrangement(lambda part: target(part, *rest, **kwargs)), low.place(_args(node)[0]))
    return low.selected(place) if target in (aten.slice.Tensor, aten.select.int) else place


def _split(low: Lowering, node: fx.Node) -> int:
    source, lengths, *axis = _args(node)
    at, start, places = int(axis[0]) if axis else 0, 0, list[int]()
    for length in lengths:
        cut = partial(torch.narrow, dim=at, start=start, length=int(length))
        places.append(low.selected(low.step(Rearrangement(cut), low.place(source))))
        start += int(length)
    return low.split(node, places)


def _same(low: Lowering, node: fx.Node) -> int:
    return low.place(_args(node)[0])


def _converted(low: Lowering, node: fx.Node) -> int:
    if node.meta["val"].dtype != torch.float64:
        raise _refuse(node, f"converts to {node.meta['val'].dtype}, which rounds: bounds are of real numbers")
    source = _args(node)[0]
    if not source.meta["val"].is_floating_point():
        return low.step(Real(), low.place(source))
    return low.place(source)


def _expanded(low: Lowering, node: fx.Node) -> int:
    return low.step(Broadcast(tuple(_shape(node))), low.place(_args(node)[0]))


def _concatenated(low: Lowering, node: fx.Node) -> int:
    parts, axis = _args(node)[0], _args(node)[1] if len(_args(node)) > 1 else 0
    places = [low.place(one) for one in parts]
    return low.step(Concatenation(int(axis) % len(_shape(node))), *places)


def _total(*, mean: bool) -> Rule:
    def rule(low: Lowering, node: fx.Node) -> int:
        ndim = len(_shape(_args(node)[0]))
        given = _args(node)[1] if len(_args(node)) > 1 else None
        axes = tuple(sorted(int(axis) % ndim for axis in given)) if given else tuple(range(ndim))
        keep = bool(_args(node)[2]) if len(_args(node)) > 2 else False
        return low.step(Total(axes, keep, mean), low.place(_args(node)[0]))

    return rule


def _embedding(low: Lowering, node: fx.Node) -> int:
    table, index = _args(node)[:2]
    return low.step(Embedding(), low.place(table), low.place(index))


def _smooth(name: str) -> Rule:
    def rule(low: Lowering, node: fx.Node) -> int:
        chosen = "gelu_tanh" if name == "gelu" and node.kwargs.get("approximate") == "tanh" else name
        return low.step(Smooth(chosen, where=line_of(node)), low.place(_args(node)[0]))

    return rule


def _relu(low: Lowering, node: fx.Node) -> int:
    return low.step(Pieces("ReLU", ((0, 0), (1, 0)), (Kink(0),), line_of(node)), low.place(_args(node)[0]))


def _leaky_relu(low: Lowering, node: fx.Node) -> int:
    x, slope = _filled(_args(node), None, 0.01)
    return low.step(Pieces("LeakyReLU", ((float(slope), 0), (1, 0)), (Kink(0),), line_of(node)), low.place(x))


def _between(name: str, *, ends: bool) -> Rule:
    """A line between two numbers, constant beyond; whether its slope is that of the line at the ends themselves."""

    def rule(low: Lowering, node: fx.Node) -> int:
        x, least, most = _filled(_args(node), None, *((None, None) if ends else (-1.0, 1.0)))
        if isinstance(least, fx.Node) or isinstance(most, fx.Node):
            raise _refuse(node, "between tensors has no bounds here: give numbers")
        lines, kinks = [(1.0, 0.0)], list[Kink]()
        if least is not None:
            lines, kinks = [(0.0, float(least)), *lines], [Kink(float(least), upper=ends)]
        if most is not None:
            lines, kinks = [*lines, (0.0, float(most))], [*kinks, Kink(float(most), upper=not ends)]
        if len(kinks) == 2 and not kinks[0].at < kinks[1].at:
            raise _refuse(node, f"between {kinks[0].at:g} and {kinks[1].at:g} is no interval")
        return low.step(Pieces(name, tuple(lines), tuple(kinks), line_of(node)), low.place(x))

    return rule


def _softplus(low: Lowering, node: fx.Node) -> int:
    beta, threshold = (float(one) for one in _filled(_args(node)[1:], 1.0, 20.0))
    scaled = low.step(Multiple(beta), low.place(_args(node)[0]))
    value = low.step(Smooth("softplus", threshold, line_of(node)), scaled)
    return low.step(Quotient(), value, low.constant(_scalar(beta)))


def _layer_norm(low: Lowering, node: fx.Node) -> int:
    x, shape, weight, bias, eps = _args(node)
    if len(shape) != 1:
        raise _refuse(node, "over several axes has no bounds here")
    if weight is None:
        return low.step(LayerNorm(float(eps)), low.place(x))
    parts = [low.place(one) for one in (x, weight, bias) if one is not None]
    return low.step(LayerNorm(float(eps)), *parts)


def _rms_norm(low: Lowering, node: fx.Node) -> int:
    x, shape, weight, eps = _filled(_args(node), None, None, None, None)
    if len(shape) != 1:
        raise _refuse(node, "over several axes has no bounds here")
    if eps is None:
        raise _refuse(node, "without eps takes another one for each dtype: give it an eps")
    parts = [low.place(one) for one in (x, weight) if one is not None]
    return low.step(LayerNorm(float(eps), centred=False), *parts)


def _by_root_mean_square(node: fx.Node) -> tuple[fx.Node, float] | None:
    """X and eps where a node is `x * rsqrt(mean(x^2) + eps)`, along the last axis."""
    for x, inverse in (_args(node), reversed(_args(node))):
        if not isinstance(x, fx.Node) or not isinstance(inverse, fx.Node) or _target(inverse) is not aten.rsqrt.default:
            continue
        total = _args(inverse)[0]
        if _target(total) is not aten.add.Tensor or total.kwargs or not isinstance(_args(total)[1], (int, float)):
            continue
        mean, eps = _args(total)
        if not isinstance(mean, fx.Node) or _target(mean) is not aten.mean.dim or len(_args(mean)) < 3:
            continue
        square, axes, keep = _args(mean)
        last = len(_shape(x)) - 1
        squares = (aten.pow.Tensor_Scalar, (x, 2)), (aten.mul.Tensor, (x, x))
        if keep and [axis % (last + 1) for axis in axes] == [last] and (_target(square), _args(square)) in squares:
            return x, float(eps)
    return None


def _softmax(low: Lowering, node: fx.Node) -> int:
    x, axis = _args(node)[:2]
    ndim = len(_shape(x))
    place, at = low.place(x), int(axis) % ndim
    if at == ndim - 1:
        return low.step(Softmax(), place)
    moved = low.step(Rearrangement(lambda part: part.movedim(at, -1)), place)
    return low.step(Rearrangement(lambda part: part.movedim(-1, at)), low.step(Softmax(), moved))


def _attention(low: Lowering, node: fx.Node) -> int:
    query, key, value, *rest = _args(node)
    mask, dropout, causal = _filled(rest, None, 0.0, False)
    if mask is not None or dropout or node.kwargs.get("enable_gqa"):
        raise _refuse(node, "with a mask of its own, dropout or grouped queries has no bounds here")
    scale = dict[str, Any](node.kwargs).get("scale")
    factor = float(scale) if scale is not None else float(_shape(query)[-1]) ** -0.5
    seen = None
    if causal:
        seen = torch.ones(_shape(query)[-2], _shape(key)[-2], dtype=torch.bool).tril()
    return low.step(Attention(factor, seen), low.place(query), low.place(key), low.place(value))


def _cross_entropy(low: Lowering, node: fx.Node) -> int:
    logits, labels, *rest = _args(node)
    weight, reduction, _, smoothing = _filled(rest, None, 1, _IGNORED, 0.0)
    if _args(node)[1].meta["val"].is_floating_point():
        raise _refuse(node, "with probabilities as targets has no bounds here")
    if weight is not None or reduction != 1:
        raise _refuse(node, "with class weights, or another reduction than the mean, is not a mean over the samples")
    return low.step(RowsCrossEntropy(float(smoothing)), low.place(logits), low.place(labels))


def _logistic_cross_entropy(low: Lowering, node: fx.Node) -> int:
    """The mean of `softplus(z) - t z`: its derivative is `sigmoid(z) - t`."""
    outputs, targets, weight, positive, reduction = _filled(_args(node), None, None, None, None, 1)
    if weight is not None or positive is not None or reduction != 1:
        raise _refuse(node, "with weights, or another reduction than the mean, has no bounds here")
    if _shape(outputs) != _shape(targets) or not low.exact(low.place(targets)):
        raise _refuse(node, "takes given targets of the same shape alone")
    z, given = low.place(outputs), low.place(targets)
    each = low.step(Sum(-1.0), low.step(Smooth("softplus", where=line_of(node)), z), low.step(Product(), z, given))
    return low.step(Total(tuple(range(len(_shape(outputs)))), False, True), each)


def _squared_error(low: Lowering, node: fx.Node) -> int:
    outputs, targets = _args(node)[:2]
    reduction = _args(node)[2] if len(_args(node)) > 2 else 1
    if _shape(outputs) != _shape(targets):
        raise _refuse(node, f"broadcasts {tuple(_shape(outputs))} against {tuple(_shape(targets))}: give equal shapes")
    squares = low.step(Square(), low.step(Sum(-1.0), low.place(outputs), low.place(targets)))
    if reduction == 0:
        return squares
    return low.step(Total(tuple(range(len(_shape(outputs)))), False, reduction == 1), squares)


def _created(low: Lowering, node: fx.Node) -> int:
    return low.constant(_target(node)(*_args(node), **node.kwargs))


RULES: dict[Any, Rule] = {
    **SPATIAL_RULES,
    aten.linear.default: _linear,
    aten.mm.default: _product_of_matrices,
    aten.bmm.default: _product_of_matrices,
    aten.addmm.default: _addmm,
    aten.add.Tensor: _sum(1.0),
    aten.sub.Tensor: _sum(-1.0),
    aten.mul.Tensor: _product,
    aten.mul.Scalar: _product,
    aten.div.Tensor: _quotient,
    aten.neg.default: lambda low, node: low.step(Multiple(-1.0), low.place(_args(node)[0])),
    aten.pow.Tensor_Scalar: _square,
    **dict.fromkeys(
        (
            aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.permute.default,
            aten.transpose.int, aten.t.default, aten.squeeze.dims, aten.squeeze.dim, aten.squeeze.default,
            aten.unsqueeze.default, aten.slice.Tensor, aten.select.int, aten.constant_pad_nd.default, aten.flip.default,
        ),
        _moved,
    ),
    **dict.fromkeys((aten.clone.default, aten.alias.default, aten.contiguous.default), _same),
    aten._to_copy.default: _converted,
    aten.expand.default: _expanded,
    aten.cat.default: _concatenated,
    aten.sum.dim_IntList: _total(mean=False),
    aten.sum.default: _total(mean=False),
    aten.mean.dim: _total(mean=True),
    aten.mean.default: _total(mean=True),
    aten.embedding.default: _embedding,
    aten.tanh.default: _smooth("tanh"),
    aten.sigmoid.default: _smooth("sigmoid"),
    aten.silu.default: _smooth("silu"),
    aten.gelu.default: _smooth("gelu"),
    aten.softplus.default: _softplus,
    aten.relu.default: _relu,
    aten.leaky_relu.default: _leaky_relu,
    aten.hardtanh.default: _between("hardtanh", ends=False),
    aten.clamp.default: _between("clamp", ends=True),
    aten.clamp_min.default: _between("clamp", ends=True),
    aten.native_layer_norm.default: _layer_norm,
    aten._softmax.default: _softmax,
    aten.scaled_dot_product_attention.default: _attention,
    aten.cross_entropy_loss.default: _cross_entropy,
    aten.mse_loss.default: _squared_error,
    aten.binary_cross_entropy_with_logits.default: _logistic_cross_entropy,
    aten.split_with_sizes.default: _split,
    aten.rms_norm.default: _rms_norm,
    aten.rsqrt.default: lambda low, node: low.step(InverseRoot(), low.place(_args(node)[0])),
    **dict.fromkeys((aten.full.default, aten.zeros.default, aten.ones.default), _created),
}  # fmt: skip
