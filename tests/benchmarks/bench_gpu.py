"""ViT-B/16 on a GPU: full-batch gradient and Hessian-vector products beside plain loops and the device's own peak.

The peak is measured, not read from a data sheet: one large float32 matrix product with TF32 off, as recorded numbers
are made. Floating-point operations are those of the plain work (`torch.utils.flop_counter`), so that work done twice
lowers the fraction.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tests.benchmarks.timing import Figure, Timing, markdown, paired, ratios
from tvgrad.problem.objective import Objective

LOOP, GRADIENT, PRODUCT, DOUBLE = "plain backward loop", "tvgrad gradient", "tvgrad hvp", "plain double backward"
SQUARE = 8192
GIGABYTE = 1e9


class VisionTransformerBase(nn.Module):
    """ViT-B/16 of standard modules: 86 million parameters at 224 x 224 pixels, ten classes."""

    def __init__(self, width: int = 768, depth: int = 12, heads: int = 12, patch: int = 16, pixels: int = 224) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, patch, stride=patch)
        self.first = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, (pixels // patch) ** 2 + 1, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of images."""
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.first.expand(len(images), -1, -1), tokens], 1) + self.positions
        return torch.as_tensor(self.head(self.blocks(tokens)[:, 0]))


def operations(run: Callable[[], object]) -> int:
    """Floating-point operations of matrix products, convolutions and attention in one run."""
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def peak(size: int) -> Callable[[], torch.Tensor]:
    """One float32 matrix product of `size` rows and columns."""
    left, right = (torch.randn(size, size, device="cuda") for _ in range(2))
    return lambda: left @ right


def loops(
    model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor, chunk: int, vector: list[torch.Tensor]
) -> tuple[Callable[[], None], Callable[[], None]]:
    """The plain work: a backward loop, and double backward with one vector, at the same chunk."""
    total = nn.CrossEntropyLoss(reduction="sum")
    parameters = list(model.parameters())

    def losses() -> Iterator[torch.Tensor]:
        for start in range(0, len(inputs), chunk):
            yield total(model(inputs[start : start + chunk]), targets[start : start + chunk]) / len(inputs)

    def backward() -> None:
        model.zero_grad()
        for loss in losses():
            loss.backward()

    def twice() -> None:
        model.zero_grad()
        for loss in losses():
            first = torch.autograd.grad(loss, parameters, create_graph=True)
            torch.autograd.backward(first, vector)

    return backward, twice


def fractions(timings: list[Timing], name: str, flops: int, rate: float, least: float | None = None) -> Figure:
    """The share of the device's rate that plain work of so many operations reaches in this competitor's time."""
    seconds = next(timing.seconds for timing in timings if timing.name == name)
    values = [flops / (one * rate) for one in seconds]
    return Figure(f"{name}, ViT-B/16", "float32 peak of the device", values, least, least=True)


def figures(rounds: int, quick: bool = False) -> Iterator[Figure]:
    """Measure, where there is a CUDA device; nothing elsewhere.

    Args:
        rounds: of each competitor.
        quick: a small model on little data.

    Yields:
        Figures with their goals.
    """
    if not torch.cuda.is_available():
        print("no CUDA device here: nothing measured")
        return
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    samples, chunk, size = (8, 4, 1024) if quick else (256, 64, SQUARE)
    model = (VisionTransformerBase(depth=2) if quick else VisionTransformerBase()).cuda()
    inputs, targets = torch.randn(samples, 3, 224, 224, device="cuda"), torch.randint(10, (samples,), device="cuda")
    objective = Objective(model, nn.CrossEntropyLoss(), (inputs, targets), chunk_size=chunk)
    vectors = [{name: torch.randn_like(p) for name, p in model.named_parameters()} for _ in range(4)]
    product = peak(size)
    rate = 2 * size**3 / statistics.median(paired({"peak": product}, max(rounds, 5), warmup=3)[0].seconds)
    print(f"{torch.cuda.get_device_name()}: {rate / 1e12:.1f} Tflop/s in float32 products of {size} rows", flush=True)

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        backward, twice = loops(model, inputs, targets, chunk, list(vectors[0].values()))
        flops = operations(backward), operations(twice)
        timings = paired({LOOP: backward, GRADIENT: objective.gradient}, rounds)
        print(markdown(f"Gradient of ViT-B/16, n = {samples}, chunk {chunk}", timings), flush=True)
        again = paired({DOUBLE: twice, PRODUCT: lambda: objective.hvp(vectors[0])}, rounds)
    together = paired(
        {
            "4 separate": lambda: [objective.hvp(vector) for vector in vectors],
            "4 at once": lambda: objective.hvps(vectors),
        },
        max(1, rounds // 2),
    )
    print(markdown(f"Products of ViT-B/16, n = {samples}, chunk {chunk}", [*again, *together]), flush=True)
    for name, count, found in ((LOOP, flops[0], timings), (GRADIENT, flops[0], timings), (DOUBLE, flops[1], again)):
        yield fractions(found, name, count, rate)
    yield fractions(again, PRODUCT, flops[1], rate)
    for above, below, found, goal in (
        (GRADIENT, LOOP, timings, 1.05), (PRODUCT, DOUBLE, again, 1.05), ("4 at once", "4 separate", together, 0.65),
    ):  # fmt: skip
        values = ratios(found, above, below)
        assert values is not None
        yield Figure(f"{above}, ViT-B/16", below, values, goal)
    for name, run in ((GRADIENT, objective.gradient), (PRODUCT, lambda: objective.hvp(vectors[0]))):
        torch.cuda.reset_peak_memory_stats()
        run()
        yield Figure(f"{name}, peak memory, ViT-B/16", "GB", [torch.cuda.max_memory_allocated() / GIGABYTE])


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    for figure in figures(options.rounds, options.quick):
        print(*figure.row, sep="; ")


if __name__ == "__main__":
    main()
