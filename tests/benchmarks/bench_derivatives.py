"""Full-batch gradient and Hessian-vector products beside their peers, in one process and at equal chunks.

Peers that are not installed are left out; `make bench` installs them.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from tests.benchmarks.timing import Figure, Timing, markdown, paired, ratios
from tvgrad.problem.objective import Objective
from tvgrad.recipes.suite import VisionTransformer

SIZES = (784, 512, 512, 10)
GRADIENT, LOOP, LOADER, PRODUCTS = (
    "one full-batch gradient",
    "plain backward loop",
    "DataLoader loop",
    "matrix products",
)
HVP = "tvgrad hvp"

Competitors = dict[str, Callable[[], object]]


def mlp() -> nn.Module:
    """784-512-512-10 with tanh: 670,000 parameters."""
    wide, narrow, deep, out = SIZES
    layers = (nn.Linear(wide, narrow), nn.Tanh(), nn.Linear(narrow, deep), nn.Tanh(), nn.Linear(deep, out))
    return nn.Sequential(nn.Flatten(), *layers)


class LargeTransformer(VisionTransformer):
    """The suite's vision transformer, wider and deeper."""

    WIDTH, HEADS, DEPTH = 288, 8, 7


def vit() -> nn.Module:
    """A vision transformer with a head: 4.7 million parameters."""
    return nn.Sequential(LargeTransformer(), nn.Linear(LargeTransformer.WIDTH, 10))


def with_math_attention(run: Callable[[], object]) -> Callable[[], None]:
    """The only attention kernel that can be differentiated twice; tvgrad chooses it by itself."""

    def wrapped() -> None:
        with sdpa_kernel(SDPBackend.MATH):
            run()

    return wrapped


def matrix_products(count: int, chunk: int) -> Callable[[], None]:
    """Nothing but the matrix products of a gradient of the MLP: forward, by weights, and by inputs but the first."""
    inputs = [torch.randn(chunk, size) for size in SIZES[:-1]]
    errors = [torch.randn(chunk, size) for size in SIZES[1:]]
    weights = [torch.randn(size, before) for before, size in itertools.pairwise(SIZES)]

    def run() -> None:
        for _ in range(0, count, chunk):
            for depth, (given, error, weight) in enumerate(zip(inputs, errors, weights, strict=True)):
                given @ weight.T
                error.T @ given
                if depth:
                    error @ weight

    return run


def hessian_of_curvlinops(model: nn.Module, loss: nn.Module, batches: list) -> object:
    """The Hessian as a linear operator of curvlinops."""
    from curvlinops import HessianLinearOperator

    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    try:
        return HessianLinearOperator(model, loss, parameters, batches, check_deterministic=False)
    except (TypeError, AttributeError):  # versions before 3 take a list
        return HessianLinearOperator(model, loss, list(parameters.values()), batches, check_deterministic=False)


def gradients(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor, chunk: int, bare: bool) -> Competitors:
    """A plain loop at the same chunk first, then tvgrad, a DataLoader of 128, and a peer."""
    mean, total = nn.CrossEntropyLoss(), nn.CrossEntropyLoss(reduction="sum")
    objective = Objective(model, mean, (inputs, targets), chunk_size=chunk)

    def loop() -> None:
        model.zero_grad()
        for start in range(0, len(inputs), chunk):
            (total(model(inputs[start : start + chunk]), targets[start : start + chunk]) / len(inputs)).backward()

    def loader() -> None:
        model.zero_grad()
        for x, y in DataLoader(TensorDataset(inputs, targets), batch_size=128):
            (total(model(x), y) / len(inputs)).backward()

    competitors: Competitors = {LOOP: loop, "tvgrad": objective.gradient, LOADER: loader}
    if bare:
        competitors[PRODUCTS] = matrix_products(len(inputs), chunk)
    try:
        data = [(inputs[s : s + chunk], targets[s : s + chunk]) for s in range(0, len(inputs), chunk)]
        operator = hessian_of_curvlinops(model, mean, data)
        if hasattr(operator, "gradient_and_loss"):
            competitors["curvlinops"] = operator.gradient_and_loss
    except ImportError:
        pass
    return competitors


def products(
    model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor, chunk: int, counts: tuple[int, ...]
) -> Competitors:
    """One full-batch gradient as the unit, then products by tvgrad and its peers."""
    mean = nn.CrossEntropyLoss()
    objective = Objective(model, mean, (inputs, targets), chunk_size=chunk)
    generator = torch.Generator().manual_seed(1)
    vectors = [
        {n: torch.randn(p.shape, generator=generator) for n, p in model.named_parameters()} for _ in range(max(counts))
    ]
    batches = [(inputs[s : s + chunk], targets[s : s + chunk]) for s in range(0, len(inputs), chunk)]
    competitors: Competitors = {
        GRADIENT: objective.gradient,
        HVP: lambda: objective.hvp(vectors[0]),
    }
    for count in counts:
        some = vectors[:count]
        competitors[f"tvgrad hvps, {count} vectors"] = lambda some=some: objective.hvps(some)
        competitors[f"tvgrad, {count} separate"] = lambda some=some: [objective.hvp(vector) for vector in some]
    flat = torch.cat([tensor.flatten() for tensor in vectors[0].values()])
    try:
        import pyhessian

        with sdpa_kernel(SDPBackend.MATH):
            peer = pyhessian.hessian(model, mean, dataloader=batches, cuda=False)
        listed = list(vectors[0].values())
        competitors["PyHessian"] = with_math_attention(lambda: peer.dataloader_hv_product(listed))
    except ImportError:
        pass
    try:
        operator = hessian_of_curvlinops(model, mean, batches)
        competitors["curvlinops"] = with_math_attention(lambda: operator @ flat)
    except ImportError:
        pass
    try:
        from hessian_eigenthings import HessianOperator

        other = HessianOperator(model, batches, lambda module, batch: mean(module(batch[0]), batch[1]))
        competitors["hessian-eigenthings"] = with_math_attention(lambda: other.matvec(flat))
    except ImportError:
        pass
    return competitors


def operations(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor, count: int) -> float:
    """Operations of matrix products that several products at once take, over those of separate ones."""
    objective = Objective(model, nn.CrossEntropyLoss(), (inputs, targets), chunk_size=len(inputs))
    vector = {name: torch.randn_like(parameter) for name, parameter in model.named_parameters()}
    objective.hvp(vector)  # what is found out at the first product is not counted
    counted = []
    for some in ([vector], [vector] * count):
        with FlopCounterMode(display=False) as counter:
            objective.hvps(some)
        counted.append(counter.get_total_flops())
    return counted[1] / (count * counted[0])


def _present(timings: list[Timing], what: str, above: str, below: str, goal: float | None = None) -> Iterator[Figure]:
    values = ratios(timings, above, below)
    if values is not None:
        yield Figure(what, below, values, goal)


def gradient_figures(timings: list[Timing], case: str) -> Iterator[Figure]:
    """tvgrad's gradient beside each peer's, and the goals of each."""
    what = f"gradient, {case}"
    peers = {LOOP, "curvlinops"} & {timing.name for timing in timings}
    best = min(peers, key=lambda name: next(statistics.median(t.seconds) for t in timings if t.name == name))
    for peer in sorted(peers, key=lambda name: name != best):
        yield from _present(timings, what, "tvgrad", peer, 1.05 if peer == best else None)
    yield from _present(timings, what, "tvgrad", LOADER, 0.55 if case.startswith("MLP") else None)
    yield from _present(timings, what, "tvgrad", PRODUCTS, 1.8)
    yield from _present(timings, f"bare matrix products of the gradient, {case}", PRODUCTS, LOADER)


def product_figures(timings: list[Timing], case: str, counts: tuple[int, ...]) -> Iterator[Figure]:
    """tvgrad's products beside a gradient, each peer's products and separate ones, and the goals of each."""
    what = f"Hessian-vector product, {case}"
    yield from _present(timings, what, HVP, GRADIENT, 3.3 if case.startswith("ViT") else None)
    for peer in ("PyHessian", "curvlinops", "hessian-eigenthings"):
        yield from _present(timings, what, HVP, peer, 1.0 if peer == "PyHessian" else None)
    for count in counts:
        names = f"tvgrad hvps, {count} vectors", f"tvgrad, {count} separate"
        for figure in _present(timings, f"{count} products at once, {case}", *names, 0.65):
            yield Figure(figure.what, f"{count} separate ones", figure.values, figure.goal)


def figures(rounds: int, quick: bool = False) -> Iterator[Figure]:
    """Measure.

    Args:
        rounds: of each competitor.
        quick: on little data, to see that all runs; the figures mean nothing.

    Yields:
        Figures with their goals.
    """
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    cases = {"MLP": (mlp(), 10_000, 1000, (4, 8)), "ViT": (vit(), 128, 64, (4,))}
    for name, (model, samples, chunk, counts) in cases.items():
        if quick:
            samples, chunk = (2000, 1000) if name == "MLP" else (8, 4)
        inputs, targets = torch.randn(samples, 1, 28, 28), torch.randint(10, (samples,))
        size = sum(parameter.numel() for parameter in model.parameters())
        size_words = f"{name}, {size / 1e6:.2g} M parameters"
        timings = paired(gradients(model, inputs, targets, chunk, bare=name == "MLP"), rounds)
        print(markdown(f"Gradient, {size_words}, n = {samples}, chunk {chunk}", timings), flush=True)
        yield from gradient_figures(timings, f"{size_words}, n = {samples}")
        few = samples // 4 if name == "MLP" else samples
        timings = paired(products(model, inputs[:few], targets[:few], chunk, counts), rounds)
        print(markdown(f"Hessian-vector product, {size_words}, n = {few}", timings), flush=True)
        yield from product_figures(timings, f"{size_words}, n = {few}", counts)
        for number in counts:
            ratio = operations(model, inputs[:chunk], targets[:chunk], number)
            yield Figure(f"matrix operations of {number} products at once, {name}", f"{number} separate ones", [ratio])


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    for figure in figures(options.rounds, options.quick):
        print(*figure.row, sep="; ")


if __name__ == "__main__":
    main()
