"""Merging checkpoints on disk, against plain float64 arithmetic, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tvgrad.errors import TvgradError
from tvgrad.files.tensors import TensorFile
from tvgrad.merging import METHODS, checkpoints, merge_checkpoints, merge_vectors

Weights = dict[str, torch.Tensor]
SHAPES = {"embed.weight": (7, 4), "blocks.0.weight": (4, 4), "blocks.1.weight": (4, 4), "norm.bias": (4,)}


def drawn(seed: int, dtype: torch.dtype = torch.float32) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}


BASE = drawn(0)
TUNED = [{name: BASE[name] + 0.1 * tensor for name, tensor in drawn(seed).items()} for seed in (1, 2, 3)]


def folder_of(content: Weights, path: Path, **config: object) -> Path:
    path.mkdir()
    save_file(content, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps({"hidden_size": 4, "torch_dtype": "float32", **config}))
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = folder_of(BASE, tmp_path / "base")
    for name in ("tokenizer.json", "generation_config.json", "vocab.txt", "LICENSE", "trainer_state.json", "README.md"):
        (folder / name).write_text("{}")
    torch.save(drawn(9), folder / "optimizer.pt")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    return folder


def sharded(content: Weights, path: Path) -> Path:
    path.mkdir()
    for number, (name, tensor) in enumerate(content.items()):
        save_file({name: tensor}, path / f"model-{number}.safetensors")
    owners = {name: f"model-{number}.safetensors" for number, name in enumerate(content)}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": owners}))
    return path


def pickled_shards(content: Weights, path: Path) -> Path:
    path.mkdir()
    owners = {}
    for number, (name, tensor) in enumerate(content.items()):
        torch.save({name: tensor}, path / f"part-{number}.bin")
        owners[name] = f"part-{number}.bin"
    (path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": owners}))
    return path


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_what_it_gives_in_memory(method: str, base: Path, tmp_path: Path) -> None:
    """All formats and prefixes at once: shards, pickled shards, and names of a wrapper."""
    wrapped = {f"module._orig_mod.{name}": tensor for name, tensor in TUNED[2].items()}
    save_file(wrapped, tmp_path / "c.safetensors")
    paths = [sharded(TUNED[0], tmp_path / "a"), pickled_shards(TUNED[1], tmp_path / "b"), tmp_path / "c.safetensors"]
    paths = paths[: METHODS[method].most]
    made = merge_checkpoints(METHODS[method](), base, paths, alpha=0.7, out=tmp_path / "out")
    assert made.path == tmp_path / "out" / "model.safetensors"
    assert (made.left_out, made.from_base, made.adapters) == ((), (), 0)
    vectors = [{name: tuned[name].double() - BASE[name].double() for name in BASE} for tuned in TUNED[: len(paths)]]
    expected = merge_vectors(METHODS[method](), vectors, 0.7, base=BASE)
    found = load_file(made.path)
    assert set(found) == set(BASE)
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name


def test_the_sum_by_hand(base: Path, tmp_path: Path) -> None:
    paths = [folder_of(tuned, tmp_path / f"t{number}") for number, tuned in enumerate(TUNED)]
    made = merge_checkpoints(METHODS["task_arithmetic"](), base, paths, alpha=0.3, out=tmp_path / "out")
    for name, tensor in load_file(made.path).items():
        start = BASE[name].double()
        expected = start + 0.3 * sum(tuned[name].double() - start for tuned in TUNED)
        assert (tensor.double() - expected).abs().max() <= expected.abs().max() * torch.finfo(torch.float32).eps


def test_small_files_are_carried_along(base: Path, tmp_path: Path) -> None:
    tuned = [folder_of(one, tmp_path / f"t{number}") for number, one in enumerate(TUNED)]
    made = merge_checkpoints(METHODS["mean"](), base, tuned, alpha=1.0, out=tmp_path / "out", dtype=torch.bfloat16)
    expected = {
        "1_Pooling/config.json",
        "LICENSE",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "vocab.txt",
    }
    assert set(made.carried) == expected
    assert all((tmp_path / "out" / name).is_file() for name in expected)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == {"hidden_size": 4, "torch_dtype": "bfloat16"}
    found = load_file(made.path)
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    with safe_open(made.path, "pt") as file:
        assert file.metadata() == {"format": "pt"}  # transformers refuses a file that does not say so
    for name, tensor in found.items():  # rounded once, from float64
        start = BASE[name].double()
        exact = start + sum(one[name].double() - start for one in TUNED) / 3
        assert torch.equal(tensor, exact.to(torch.bfloat16))


def test_heads_and_buffers_stay_the_pretrained_ones(tmp_path: Path) -> None:
    own = {"head.weight": torch.ones(2, 4), "bn.running_mean": torch.zeros(3), "ids": torch.arange(5)}
    base = folder_of({**BASE, **own}, tmp_path / "base")
    other = {"head.weight": torch.ones(3, 4), "bn.running_mean": torch.ones(3), "ids": torch.arange(5)}
    tuned = [folder_of({**one, **other, "new": torch.ones(1)}, tmp_path / f"t{k}") for k, one in enumerate(TUNED)]
    made = merge_checkpoints(METHODS["mean"](), base, tuned, alpha=1.0, out=tmp_path / "out")
    assert set(made.from_base) == set(own)
    assert made.left_out == (
        "1 left out: new is not in every checkpoint",
        "1 left out: head.weight has another shape in one of them",
    )
    found = load_file(made.path)
    assert set(found) == {*BASE, *own}
    assert all(torch.equal(found[name], tensor) for name, tensor in own.items())


def test_tied_tensors_stay_equal(tmp_path: Path) -> None:
    def write(content: Weights, name: str) -> Path:
        torch.save({**content, "lm_head.weight": content["embed.weight"]}, tmp_path / name)
        return tmp_path / name

    base, *tuned = (write(content, f"{k}.bin") for k, content in enumerate((BASE, *TUNED)))
    made = merge_checkpoints(METHODS["dare"](), base, tuned, alpha=1.0, out=tmp_path / "out")
    found = load_file(made.path)
    assert torch.equal(found["lm_head.weight"], found["embed.weight"])
    assert "lm_head.weight" in made.merged
    assert made.left_out == ("1 left out: lm_head.weight is tied to another and counts once",)


def test_one_of_the_models_is_part_of_a_larger_module(base: Path, tmp_path: Path) -> None:
    larger = {f"bert.{name}": tensor for name, tensor in TUNED[0].items()} | {"classifier.bias": torch.ones(2)}
    save_file(larger, tmp_path / "larger.safetensors")
    made = merge_checkpoints(
        METHODS["task_arithmetic"](), base, [tmp_path / "larger.safetensors"], alpha=1.0, out=tmp_path / "out"
    )
    for name, tensor in load_file(made.path).items():
        torch.testing.assert_close(tensor, TUNED[0][name], rtol=0, atol=1e-6)


def test_an_interrupted_merge_is_finished(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = [folder_of(one, tmp_path / f"t{number}") for number, one in enumerate(TUNED)]

    def merge(out: str, alpha: float = 1.0) -> Path:
        return merge_checkpoints(
            METHODS["mean"](), base, tuned, alpha=alpha, out=tmp_path / out, max_shard_bytes=100
        ).path

    whole = merge("whole")
    assert whole.name == "model.safetensors.index.json"
    working = checkpoints.merged_blocks
    asked: list[str] = []

    def broken(method: object, stack: object, name: str, **options: object) -> object:
        asked.append(name)
        if name == "norm.bias" and len(asked) < 5:
            raise KeyboardInterrupt
        return working(method, stack, name, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(checkpoints, "merged_blocks", broken)
    with pytest.raises(KeyboardInterrupt):
        merge("part")
    done = {file: os.stat(file).st_mtime_ns for file in (tmp_path / "part").glob("model-*")}
    assert 0 < len(done) < 4
    assert not (tmp_path / "part" / "model.safetensors.index.json").exists()
    with pytest.raises(TvgradError, match="holds another merge"):
        merge("part", alpha=0.5)
    first = len(asked)
    merge("part")
    assert len(asked) - first == 4 - len(done)
    assert {file: os.stat(file).st_mtime_ns for file in done} == done
    with TensorFile(whole) as one, TensorFile(tmp_path / "part" / whole.name) as other:
        assert all(torch.equal(one.read(name), other.read(name)) for name in BASE)


class Danger:
    """Would make a file if it were unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def test_refusals(base: Path, tmp_path: Path) -> None:
    def refused(*tuned: Path, pretrained: Path = base, out: str = "out") -> str:
        with pytest.raises(TvgradError) as caught:
            merge_checkpoints(METHODS["mean"](), pretrained, tuned, alpha=1.0, out=tmp_path / out)
        assert not (tmp_path / "out").exists()
        return str(caught.value)

    good = folder_of(TUNED[0], tmp_path / "good")
    torch.save({"embed.weight": Danger(tmp_path / "executed")}, tmp_path / "danger.bin")
    assert "holds more than tensors" in refused(tmp_path / "danger.bin")
    assert not (tmp_path / "executed").exists()
    save_file({"other": torch.ones(2)}, tmp_path / "other.safetensors")
    other = tmp_path / "other.safetensors"
    assert "have no parameter in common" in refused(other)
    assert f"{other} have no parameter in common" in refused(good, other)
    save_file({name: torch.ones(5, 1, 2) for name in BASE}, tmp_path / "wide.safetensors")
    assert "have no parameter in common that has one shape (" in refused(tmp_path / "wide.safetensors")
    assert "is given twice" in refused(good, good)
    assert "does not exist" in refused(tmp_path / "nowhere")
    save_file({"a.lora_A.weight": torch.ones(1, 2), **BASE}, tmp_path / "factors.safetensors")
    assert "nothing says their scale" in refused(tmp_path / "factors.safetensors")
    quantised = folder_of(TUNED[1], tmp_path / "quantised", quantization_config={"bits": 4})
    assert "are quantised" in refused(good, quantised)
    assert "are quantised" in refused(good, pretrained=quantised)
    (quantised / "config.json").write_text("{")
    assert "cannot be read" in refused(good, quantised)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").touch()
    assert "is not an empty folder" in refused(good, out="full")
    assert "is a file" in refused(good, out="good/config.json")


def test_a_dtype_that_no_file_holds_is_named(tmp_path: Path) -> None:
    for name in ("base", "tuned"):
        torch.save({"w": torch.ones(2), "c": torch.ones(2, dtype=torch.complex128)}, tmp_path / f"{name}.pt")
    with pytest.raises(TvgradError, match="tensor 'c' is of dtype complex128, which no safetensors file holds"):
        merge_checkpoints(
            METHODS["mean"](), tmp_path / "base.pt", [tmp_path / "tuned.pt"], alpha=1.0, out=tmp_path / "o"
        )
