"""The CLIP recipes, offline: a tiny random CLIP and small data sets in the formats of the hub."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="transformers is not installed (extra hf)")
datasets = pytest.importorskip("datasets", reason="datasets is not installed (extra hf)")

from PIL import Image  # noqa: E402
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer  # noqa: E402

from tvgrad.errors import TvgradError  # noqa: E402
from tvgrad.problem.objective import Objective  # noqa: E402
from tvgrad.problem.recipe import check_recipes  # noqa: E402
from tvgrad.recipes.clip_vision import BENCHMARKS, MEAN, SPREAD, Images, clip_recipes  # noqa: E402
from tvgrad.record.options import TraceOptions  # noqa: E402
from tvgrad.record.training_loop import prepare, trace  # noqa: E402
from tvgrad.theory.equivalence import check_one_epoch  # noqa: E402

SIZE = 16


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A folder with a random CLIP of two layers and a tokenizer of single letters."""
    folder = tmp_path_factory.mktemp("clip")
    letters = [chr(code) for code in range(33, 127)]
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: place for place, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer.save_pretrained(folder)
    end = tokens.index("<|endoftext|>")
    tower = {"hidden_size": 12, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {
        **tower,
        "vocab_size": len(tokens),
        "max_position_embeddings": 77,
        "eos_token_id": end,
        "bos_token_id": end - 1,
        "pad_token_id": end,
    }
    config = CLIPConfig(
        text_config=text, vision_config={**tower, "image_size": SIZE, "patch_size": 8}, projection_dim=8
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    return folder


def table(count, classes, mode="L", side=20, seed=0):
    numbers = np.random.default_rng(seed)
    shape = (count, side, side + 5) if mode == "L" else (count, side, side + 5, 3)
    pictures = [Image.fromarray(array, mode) for array in numbers.integers(0, 256, shape, dtype=np.uint8)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=classes)})
    labels = [place % len(classes) for place in range(count)]
    return datasets.Dataset.from_dict({"image": pictures, "label": labels}, features=features)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Two data sets as `save_to_disk` writes them, and one as a folder of Parquet files, as on the hub."""
    folder = tmp_path_factory.mktemp("data")
    for name, classes, mode in (("mnist", ["0", "1", "2"], "L"), ("dtd", ["banded", "cob_webbed"], "RGB")):
        datasets.DatasetDict(train=table(12, classes, mode), test=table(6, classes, mode, seed=1)).save_to_disk(
            folder / name
        )
    (folder / "eurosat").mkdir()
    for part, count in (("train", 9), ("test", 6)):
        table(count, ["Forest", "River"], "RGB").to_parquet(folder / "eurosat" / f"{part}-00000-of-00001.parquet")
    return {name: folder / name for name in ("mnist", "dtd", "eurosat")}


@pytest.fixture(scope="module")
def recipes(clip, sources):
    return clip_recipes(clip, sources, list(sources))


def test_all_three_formats_make_tasks_that_share_the_tower(recipes):
    check_recipes(recipes, "clip")
    assert [recipe.name for recipe in recipes] == ["mnist", "dtd", "eurosat"]
    assert [(len(recipe.train), len(recipe.test)) for recipe in recipes] == [(12, 6), (12, 6), (9, 6)]
    for recipe in recipes:
        trained = [name for name, parameter in recipe.model.named_parameters() if parameter.requires_grad]
        assert all(name.startswith("encoder.") for name in trained)
        assert (recipe.optimizer, recipe.lr, recipe.batch_size) == ("adam", 1e-5, 32)
        assert recipe.epochs == BENCHMARKS[recipe.name].epochs


def test_logits_are_clips_own(recipes, clip):
    """With one prompt a class, the logits are those of CLIP's own forward pass."""
    model, tokenizer = CLIPModel.from_pretrained(clip).eval(), CLIPTokenizer.from_pretrained(clip)
    images, _ = recipes[0].train.batch(0, 5)
    words = tokenizer([f'a photo of the number: "{digit}".' for digit in "012"], return_tensors="pt", padding=True)
    with torch.no_grad():
        truth = model(**words, pixel_values=images).logits_per_image
        torch.testing.assert_close(recipes[0].model(images), truth, rtol=1e-4, atol=1e-5)


def test_pixels_are_scaled_cut_and_normalised():
    flat = Image.fromarray(np.full((30, 50, 3), (255, 0, 51), dtype=np.uint8))
    rows = datasets.Dataset.from_dict(
        {"image": [flat, flat], "label": [1, 0]},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}),
    )
    pixels, label = Images(rows, SIZE)[0]
    assert pixels.shape == (3, SIZE, SIZE)
    assert label == 1
    expected = (torch.tensor([1.0, 0.0, 0.2]) - torch.tensor(MEAN)) / torch.tensor(SPREAD)
    torch.testing.assert_close(pixels, expected.view(3, 1, 1).expand(3, SIZE, SIZE), rtol=1e-5, atol=1e-6)
    assert len(Images(rows, SIZE, most=1)) == 1


def test_one_epoch_is_exact_and_has_second_derivatives(recipes, tmp_path):
    run = trace(prepare(recipes[0], TraceOptions(optimizer="gd", lr=0.01, epochs=1)), tmp_path / "run")
    assert check_one_epoch(run).holds == "exact"
    objective = Objective(recipes[0].model, recipes[0].loss, recipes[0].train)
    gradient = objective.gradient()
    assert all(torch.isfinite(part).all() for part in objective.hvp(gradient).values())


def test_what_is_missing_is_said_in_one_sentence(clip, sources, tmp_path):
    unnamed = datasets.Dataset.from_dict({"image": [1, 2], "label": [0, 1]})
    datasets.DatasetDict(train=unnamed, test=unnamed).save_to_disk(tmp_path / "unnamed")
    datasets.DatasetDict(train=table(4, ["a", "b"])).save_to_disk(tmp_path / "half")
    cases = [
        (lambda: clip_recipes(tmp_path / "none", sources, ["mnist"]), "cannot be loaded"),
        (lambda: clip_recipes(clip, {"mnist": tmp_path / "gone"}, ["mnist"]), "cannot be loaded"),
        (lambda: clip_recipes(clip, {"mnist": tmp_path / "unnamed"}, ["mnist"]), "no column of kind ClassLabel"),
        (lambda: clip_recipes(clip, {"mnist": tmp_path / "half"}, ["mnist"]), "no split 'test'"),
        (lambda: clip_recipes(clip, sources, ["flowers"]), "there is no benchmark 'flowers'"),
    ]
    for attempt, words in cases:
        with pytest.raises(TvgradError, match=words) as caught:
            attempt()
        assert "\n" not in str(caught.value)
