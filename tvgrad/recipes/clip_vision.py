"""Seven vision benchmarks with CLIP ViT-B/16, the set-up of arXiv 2508.16082: for a network (or copies) and a GPU.

    cifar100 tanganke/cifar100    dtd      tanganke/dtd         eurosat  tanganke/eurosat
    gtsrb    tanganke/gtsrb       mnist    ylecun/mnist         resisc45 tanganke/resisc45
    svhn     ufldl-stanford/svhn (cropped_digits)

The image tower of `openai/clip-vit-base-patch16` is tuned; the projection is frozen, and so is the head: the text
embeddings of the class names, averaged over the benchmark's prompts. Settings are the published ones (Adam, learning
rate 1e-5, batches of 32, 4 to 76 epochs), except for the gradient clipping at 10, which `tvgrad trace` has not.

The recipes need `transformers` and `datasets` (extra `hf`). For copies on a disk, call `clip_recipes` in a file of
your own with the folders' names.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from tvgrad.errors import TvgradError
from tvgrad.problem.recipe import Recipe, accuracy
from tvgrad.recipes.pretraining import normalised

MODEL = "openai/clip-vit-base-patch16"
MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the images that CLIP was trained on, per channel
SPREAD = (0.26862954, 0.26130258, 0.27577711)
LR, BATCH = 1e-5, 32


@dataclass(frozen=True)
class Benchmark:
    """One of the data sets.

    Attributes:
        source: its name on the Hugging Face hub, or a folder.
        epochs: as published.
        prompts: sentences with a place for the class's name.
        configuration: of the data set, where it has several.
    """

    source: str
    epochs: int
    prompts: tuple[str, ...]
    configuration: str | None = None


BENCHMARKS = {
    "cifar100": Benchmark("tanganke/cifar100", 6, ("a photo of a {}.", "a blurry photo of a {}.")),
    "dtd": Benchmark("tanganke/dtd", 76, ("a photo of a {} texture.", "a photo of a {} pattern.")),
    "eurosat": Benchmark("tanganke/eurosat", 12, ("a centered satellite photo of {}.",)),
    "gtsrb": Benchmark("tanganke/gtsrb", 11, ('a zoomed in photo of a "{}" traffic sign.',)),
    "mnist": Benchmark("ylecun/mnist", 5, ('a photo of the number: "{}".',)),
    "resisc45": Benchmark("tanganke/resisc45", 15, ("satellite imagery of {}.", "aerial imagery of {}.")),
    "svhn": Benchmark("ufldl-stanford/svhn", 4, ('a photo of the number: "{}".',), "cropped_digits"),
}
"""Task -> data set, epochs and prompts."""


def clip_vision() -> list[Recipe]:
    """Make the seven tasks from the Hugging Face hub.

    Returns:
        One recipe a benchmark.
    """
    return clip_recipes()


def clip_recipes(
    model: str | Path = MODEL,
    sources: Mapping[str, str | Path] | None = None,
    names: Sequence[str] = tuple(BENCHMARKS),
    *,
    most: int | None = None,
) -> list[Recipe]:
    """Make tasks from the hub, or from folders.

    Args:
        model: a CLIP model on the hub, or a folder that `save_pretrained` made of model and tokenizer.
        sources: task -> folder that `Dataset.save_to_disk` made, or that `load_dataset` reads, instead of the hub's.
        names: which benchmarks.
        most: training and test samples at the most; None is all.

    Returns:
        One recipe a benchmark; all share the image tower.

    Raises:
        TvgradError: `transformers` or `datasets` is not installed, or something cannot be loaded or has no class names.
    """
    clip, tokenizer = _clip(str(model))
    recipes = []
    for name in names:
        if name not in BENCHMARKS:
            raise TvgradError(f"there is no benchmark {name!r}: choose from {', '.join(BENCHMARKS)}")
        benchmark = BENCHMARKS[name]
        splits = _load(str((sources or {}).get(name, benchmark.source)), benchmark.configuration)
        classes = _class_names(splits["train"], name)
        weight = _zero_shot_head(clip, tokenizer, classes, prompts=benchmark.prompts)
        size = int(clip.config.vision_config.image_size)
        recipes.append(
            Recipe(
                ClipClassifier(copy.deepcopy(clip.vision_model), copy.deepcopy(clip.visual_projection), weight).eval(),
                nn.CrossEntropyLoss(),
                train=Images(splits["train"], size, most),
                test=Images(splits["test"], size, most),
                name=name,
                metric=accuracy,
                optimizer="adam",
                lr=LR,
                epochs=benchmark.epochs,
                batch_size=BATCH,
                about=f"{benchmark.source}, {len(classes)} classes, zero-shot head of {model}",
            )
        )
    return recipes


class ClipClassifier(nn.Module):
    """A CLIP image tower with a frozen projection and a frozen linear head on unit features."""

    def __init__(self, encoder: nn.Module, projection: nn.Linear, head: torch.Tensor) -> None:
        """Freeze what is not the encoder.

        Args:
            encoder: the image tower, called with `pixel_values`.
            projection: to the space that images and texts share.
            head: shape (classes, width), the temperature included.
        """
        super().__init__()
        self.encoder = encoder
        self.projection = projection.requires_grad_(False)
        self.head = nn.Parameter(head, requires_grad=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Classify images.

        Args:
            images: normalised pixels, shape (n, 3, size, size).

        Returns:
            Logits, shape (n, classes).
        """
        features = self.projection(self.encoder(pixel_values=images).pooler_output)
        return nn.functional.normalize(features, dim=-1) @ self.head.T


class Images(Dataset[tuple[torch.Tensor, int]]):
    """A Hugging Face data set with an image and a label, as normalised pixels and class indices."""

    def __init__(self, table: Any, size: int, most: int | None = None) -> None:
        """Find the columns.

        Args:
            table: one split.
            size: pixels a side.
            most: samples at the most, evenly spaced; None is all.
        """
        self._table, self._size = table, size
        self._image = _column(table, "Image")
        self._label = _column(table, "ClassLabel")
        count = len(table) if most is None else min(most, len(table))
        self._places = np.linspace(0, len(table) - 1, count).round().astype(int)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, place: int) -> tuple[torch.Tensor, int]:
        row = self._table[int(self._places[place])]
        return self._pixels(row[self._image]), int(row[self._label])

    def _pixels(self, picture: Any) -> torch.Tensor:
        """The short side scaled to the size (bicubic), the middle cut out, and CLIP's normalisation."""
        from PIL import Image

        picture = picture.convert("RGB")
        scale = self._size / min(picture.size)
        width, height = (max(self._size, round(side * scale)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - self._size) // 2, (height - self._size) // 2
        picture = picture.crop((left, top, left + self._size, top + self._size))
        pixels = torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255.0).permute(2, 0, 1)
        return normalised(pixels, MEAN, SPREAD)


def _clip(name: str) -> tuple[Any, Any]:
    try:
        from transformers import AutoTokenizer, CLIPModel
    except ImportError:
        raise TvgradError("the CLIP recipes need transformers: pip install 'tvgrad[hf]'") from None
    try:
        clip: Any = CLIPModel.from_pretrained(name)
        return clip.float().eval(), AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise TvgradError(_not_loaded(name, error)) from None


def _load(source: str, configuration: str | None) -> Any:
    try:
        import datasets
    except ImportError:
        raise TvgradError("the CLIP recipes need datasets: pip install 'tvgrad[hf]'") from None
    try:
        if (Path(source) / "dataset_dict.json").is_file():
            splits = datasets.load_from_disk(source)
        else:
            splits = datasets.load_dataset(source, None if Path(source).is_dir() else configuration)
    except (OSError, ValueError, RuntimeError) as error:  # ConnectionError is an OSError
        raise TvgradError(_not_loaded(source, error)) from None
    for part in ("train", "test"):
        if part not in splits:
            raise TvgradError(f"{source} has no split {part!r}: it has {', '.join(splits)}")
    return splits


def _not_loaded(source: str, error: Exception) -> str:
    words = " ".join(str(error).split())[:200]
    return f"{source} cannot be loaded ({words}): check the network, or give a local folder to clip_recipes"


def _column(table: Any, kind: str) -> str:
    """The column that holds images, or class labels."""
    found = [name for name, feature in table.features.items() if type(feature).__name__ == kind]
    if not found:
        raise TvgradError(f"a data set has no column of kind {kind}: it has {', '.join(table.features)}")
    return "label" if "label" in found else str(found[0])


def _class_names(table: Any, task: str) -> list[str]:
    names = [str(name).replace("_", " ") for name in table.features[_column(table, "ClassLabel")].names]
    if len(names) < 2:
        raise TvgradError(f"the data set of {task} names {len(names)} class(es): a classifier needs two")
    return names


@torch.no_grad()
def _zero_shot_head(clip: Any, tokenizer: Any, classes: Sequence[str], *, prompts: Sequence[str]) -> torch.Tensor:
    """One row a class: the mean of its prompts' unit embeddings, of unit length, times CLIP's temperature."""
    rows = []
    for name in classes:
        words = tokenizer(
            [prompt.format(name) for prompt in prompts], padding=True, truncation=True, return_tensors="pt"
        )
        texts = clip.text_model(input_ids=words["input_ids"], attention_mask=words["attention_mask"]).pooler_output
        embeddings = nn.functional.normalize(clip.text_projection(texts), dim=-1)
        rows.append(nn.functional.normalize(embeddings.mean(dim=0), dim=-1))
    head: torch.Tensor = torch.stack(rows) * clip.logit_scale.exp()
    return head
