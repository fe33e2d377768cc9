"""Time and peak memory of merging and comparing checkpoints on disks, against reading and writing their bytes.

Run by hand: `python -m tests.benchmarks.bench_checkpoints [--millions 400] [--repeat 3] [--methods mean,ties]`. It
writes a pretrained model and three tuned ones, sharded Hugging Face folders in bfloat16, to a temporary folder and
deletes them. Each repetition runs in a process of its own, so that its peak memory is its own; the cache is warm.
Processor time, which other programs disturb less, stands beside the clock's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from tests.benchmarks.bench_report_pass import peak_memory
from tests.benchmarks.plain_files import read_files, write_and_delete
from tests.benchmarks.timing import Figure
from tvgrad.files.writing import write_tensors
from tvgrad.merging import METHODS, merge_checkpoints
from tvgrad.report.checkpoints import checkpoint_tables

TUNED = 3
WIDTH, INNER, VOCABULARY = 1024, 2816, 32_000
SHARD = 400_000_000
BASELINES = ("copy", "read")
MERGE_GOAL, REPORT_GOAL = 3.0, 4.0
MERGE_MEMORY, REPORT_MEMORY = 1.0, 0.5
BY_ENTRY = ("task_arithmetic", "mean", "ties", "dare", "median", "breadcrumbs", "negation", "analogy")


def shapes(parameters: int) -> dict[str, tuple[int, ...]]:
    """The tensors of a decoder of about that many parameters, with the names that Hugging Face gives them."""
    block = {
        "self_attn.q_proj": (WIDTH, WIDTH),
        "self_attn.k_proj": (WIDTH // 4, WIDTH),
        "self_attn.v_proj": (WIDTH // 4, WIDTH),
        "self_attn.o_proj": (WIDTH, WIDTH),
        "mlp.gate_proj": (INNER, WIDTH),
        "mlp.up_proj": (INNER, WIDTH),
        "mlp.down_proj": (WIDTH, INNER),
        "input_layernorm": (WIDTH,),
        "post_attention_layernorm": (WIDTH,),
    }
    a_block = 2 * WIDTH**2 + WIDTH**2 // 2 + 3 * WIDTH * INNER + 2 * WIDTH
    vocabulary = min(VOCABULARY, parameters // (4 * WIDTH))
    blocks = max(1, (parameters - vocabulary * WIDTH) // a_block)
    layers = {f"model.layers.{n}.{name}.weight": shape for n in range(blocks) for name, shape in block.items()}
    return {"model.embed_tokens.weight": (vocabulary, WIDTH)} | layers | {"model.norm.weight": (WIDTH,)}


def write_models(folder: Path, parameters: int) -> None:
    """Write the pretrained model, and models near it: tensors drawn anew for each, one after another."""
    wanted = shapes(parameters)
    start = {
        name: (torch.randn(shape, generator=torch.Generator().manual_seed(place)) * 0.05).bfloat16()
        for place, (name, shape) in enumerate(wanted.items())
    }
    for number in range(TUNED + 1):
        generator = torch.Generator().manual_seed(1_000 + number)
        model = start if number == 0 else {}
        for name, tensor in start.items():
            if number:
                model[name] = (tensor + torch.randn(tensor.shape, generator=generator) * 2e-3).bfloat16()
        place = folder / ("base" if number == 0 else f"tuned-{number}")
        place.mkdir()
        (place / "config.json").write_text('{"model_type": "llama"}')
        write_tensors(model, place / "model.safetensors", max_shard_bytes=SHARD)


def folders(folder: Path) -> list[Path]:
    """The pretrained model, then the tuned ones."""
    return [folder / "base", *sorted(folder.glob("tuned-*"))]


def read_bytes(folder: Path) -> None:
    """Read every byte once."""
    read_files(path for place in folders(folder) for path in sorted(place.glob("*.safetensors")))


def copy_bytes(folder: Path) -> None:
    """Read every byte once, and write as many as one model has, flushed to the disk."""
    read_bytes(folder)
    write_and_delete(folder / "copy", sum(path.stat().st_size for path in (folder / "base").glob("*.safetensors")))


def run_case(case: str, folder: Path) -> None:
    """Do one thing to the models."""
    base, *tuned = folders(folder)
    if case == "copy":
        copy_bytes(folder)
    elif case == "read":
        read_bytes(folder)
    elif case == "report":
        checkpoint_tables(base, tuned)
    else:
        with tempfile.TemporaryDirectory(dir=folder) as out:
            merge_checkpoints(METHODS[case](), base, tuned[: 1 if case == "negation" else TUNED], alpha=0.3, out=out)


def measure(case: str, folder: Path) -> dict[str, float]:
    """Run one case in a fresh process: seconds without its start, seconds of processors, peak resident memory in GB."""
    words = [sys.executable, "-m", "tests.benchmarks.bench_checkpoints", "--case", case, "--folder", str(folder)]
    figures: dict[str, float] = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    return figures


def figures(rounds: int, quick: bool = False, millions: int = 400, methods: tuple[str, ...] = ()) -> Iterator[Figure]:
    """Measure merges by all methods, and the tables of `report --pretrained`.

    Args:
        rounds: repetitions of each case.
        quick: on small files, to see that all runs; the figures mean nothing.
        millions: of parameters in a model.
        methods: by which; by default those of `BY_ENTRY`; the time of others is that of singular value decompositions.

    Yields:
        Figures with their goals.
    """
    chosen = methods or BY_ENTRY
    cases = (*BASELINES, "report", *chosen)
    millions = 2 if quick else millions
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # Not in this process: children are charged with the peak memory of the process that starts them.
        words = ["--case", "write", "--folder", name, "--millions", str(millions)]
        subprocess.run([sys.executable, "-m", "tests.benchmarks.bench_checkpoints", *words], check=True)
        # Cases take turns, so that a slow minute of the machine falls on all of them.
        runs = [{case: measure(case, folder) for case in cases} for _ in range(rounds)]
    for case in cases:
        below = "read" if case in ("read", "report") else "copy"
        seconds = statistics.median(run[case]["seconds"] for run in runs)
        cpu = [run[case]["cpu"] for run in runs]
        beside = min(cpu) / min(run[below]["cpu"] for run in runs)
        peak = max(run[case]["peak"] for run in runs)
        print(
            f"{case:16} {seconds:7.2f} s {min(cpu):7.2f} s of processors ({beside:5.2f} x {below})  {peak:5.2f} GB peak"
        )
    size = f"{TUNED + 1} models of {millions / 1000:.2g} B bfloat16"

    def over(above: str, below: str) -> list[float]:
        return [run[above]["seconds"] / run[below]["seconds"] for run in runs]

    yield Figure(f"report --pretrained, {size}", "plain read of the bytes", over("report", "read"), REPORT_GOAL)
    yield Figure("peak memory of it", "GB", [run["report"]["peak"] for run in runs], REPORT_MEMORY)
    for method in chosen:
        yield Figure(f"merge folders by {method}, {size}", "read and write", over(method, "copy"), MERGE_GOAL)
    peaks = [max(run[method]["peak"] for method in chosen) for run in runs]
    yield Figure(f"peak memory of these merges, {size}", "GB", peaks, MERGE_MEMORY)


def main() -> None:
    """Measure all cases, or one in this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--millions", type=int, default=400)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--methods", default="")
    parser.add_argument("--case")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.case == "write":
        write_models(options.folder, options.millions * 1_000_000)
    elif options.case:
        start, cpu = time.perf_counter(), time.process_time()
        run_case(options.case, options.folder)
        done = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu, "peak": peak_memory()}
        print(json.dumps(done))
    else:
        methods = tuple(filter(None, options.methods.split(",")))
        for figure in figures(options.repeat, millions=options.millions, methods=methods):
            print(figure.what, figure.peer, f"{figure.median:.2f}", figure.goal)


if __name__ == "__main__":
    main()
