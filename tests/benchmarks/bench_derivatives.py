"""Full-batch gradient and Hessian-vector products beside their peers, in one process and at equal chunks."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable

import torch
from timing import markdown, paired
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tvgrad.objective import Objective
from tvgrad.recipes.suite import VisionTransformer

CHUNK = 1000


def mlp() -> nn.Module:
    """784-512-512-10 with tanh: 670,000 parameters."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 512), nn.Tanh(), nn.Linear(512, 512), nn.Tanh(), nn.Linear(512, 10)
    )


def vit() -> nn.Module:
    """The suite's vision transformer with a head: 60,000 parameters."""
    return nn.Sequential(VisionTransformer(), nn.Linear(VisionTransformer.WIDTH, 10))


def gradients(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor, chunk: int) -> dict[str, Callable]:
    """A plain loop at the same chunk first, then tvgrad, and a DataLoader of 128."""
    parameters = list(model.parameters())
    mean = nn.CrossEntropyLoss()
    total = nn.CrossEntropyLoss(reduction="sum")
    objective = Objective(model, mean, (inputs, targets), chunk_size=chunk)

    def loop(size: int) -> None:
        model.zero_grad()
        for start in range(0, len(inputs), size):
            (total(model(inputs[start : start + size]), targets[start : start + size]) / len(inputs)).backward()

    def loader() -> None:
        model.zero_grad()
        for x, y in DataLoader(TensorDataset(inputs, targets), batch_size=128):
            (total(model(x), y) / len(inputs)).backward()

    competitors: dict[str, Callable] = {
        f"plain backward loop, chunk {chunk}": lambda: loop(chunk),
        "tvgrad": objective.gradient,
        "DataLoader loop, batch 128": loader,
    }
    try:
        from curvlinops import HessianLinearOperator

        data = [(inputs[s : s + chunk], targets[s : s + chunk]) for s in range(0, len(inputs), chunk)]
        operator = HessianLinearOperator(model, mean, parameters, data, check_deterministic=False)
        if hasattr(operator, "gradient_and_loss"):
            competitors["curvlinops"] = operator.gradient_and_loss
    except ImportError:
        pass
    return competitors


def products(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor, chunk: int) -> dict[str, Callable]:
    """One full-batch gradient as the unit, then products by tvgrad and its peers."""
    mean = nn.CrossEntropyLoss()
    objective = Objective(model, mean, (inputs, targets), chunk_size=chunk)
    vectors = [{n: torch.randn_like(p) for n, p in model.named_parameters()} for _ in range(8)]
    batches = [(inputs[s : s + chunk], targets[s : s + chunk]) for s in range(0, len(inputs), chunk)]
    competitors: dict[str, Callable] = {
        "one full-batch gradient": objective.gradient,
        "tvgrad hvp": lambda: objective.hvp(vectors[0]),
        "tvgrad forward_hvp": lambda: objective.forward_hvp(vectors[0]),
        "tvgrad hvps, 4 vectors": lambda: objective.hvps(vectors[:4]),
        "tvgrad, 4 separate": lambda: [objective.hvp(vector) for vector in vectors[:4]],
        "tvgrad hvps, 8 vectors": lambda: objective.hvps(vectors),
        "tvgrad, 8 separate": lambda: [objective.hvp(vector) for vector in vectors],
    }
    flat = torch.cat([tensor.flatten() for tensor in vectors[0].values()])
    try:
        import pyhessian

        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            peer = pyhessian.hessian(model, mean, dataloader=batches, cuda=False)

        def with_pyhessian() -> None:
            with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
                peer.dataloader_hv_product(list(vectors[0].values()))

        competitors["PyHessian"] = with_pyhessian
    except ImportError:
        pass
    try:
        from curvlinops import HessianLinearOperator

        operator = HessianLinearOperator(model, mean, list(model.parameters()), batches, check_deterministic=False)

        def with_curvlinops() -> None:
            with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
                operator @ flat

        competitors["curvlinops"] = with_curvlinops
    except ImportError:
        pass
    try:
        from hessian_eigenthings import HessianOperator

        loss = lambda module, batch: mean(module(batch[0]), batch[1])  # noqa: E731
        other = HessianOperator(model, batches, loss)

        def with_eigenthings() -> None:
            with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
                other.matvec(flat)

        competitors["hessian-eigenthings"] = with_eigenthings
    except ImportError:
        pass
    return competitors


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    cases = {"MLP 784-512-512-10": (mlp(), options.samples, CHUNK), "ViT, 60k parameters": (vit(), 2000, 250)}
    for name, (model, samples, chunk) in cases.items():
        inputs, targets = torch.randn(samples, 1, 28, 28), torch.randint(10, (samples,))
        print(
            markdown(
                f"Gradient, {name}, n = {samples}", paired(gradients(model, inputs, targets, chunk), options.rounds)
            )
        )
        few, labels = inputs[: samples // 4], targets[: samples // 4]
        made = products(model, few, labels, chunk)
        print(markdown(f"Hessian-vector product, {name}, n = {len(few)}", paired(made, options.rounds)), flush=True)


if __name__ == "__main__":
    main()
