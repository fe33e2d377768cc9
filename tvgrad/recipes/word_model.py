"""A small causal transformer over words, pretrained here, with one task of each of the three texts.

A token is a word or a sign. The vocabulary is that of the tasks, which are the first 1,500 tokens of each text; what
follows in the texts is what the model is pretrained on, with one token for all words beyond the vocabulary.
"""

from __future__ import annotations

import re

import torch
from torch import nn
from torch.nn import functional

from tvgrad.problem.recipe import Recipe
from tvgrad.recipes.language_models import IGNORED, blocks, text_recipe
from tvgrad.recipes.pretraining import cached_encoder
from tvgrad.recipes.texts import TEXTS, read_text

TASK_TOKENS = 1500
CONTEXT = 32
WIDTH, LAYERS, HEADS = 64, 2, 4
PRETRAINING_EPOCHS, PRETRAINING_LR, PRETRAINING_BATCH = 4, 3e-3, 32
SEED = 20251126
UNKNOWN = 0


def words() -> list[Recipe]:
    """Make the three tasks.

    Returns:
        One recipe a text; AdamW at rate 1e-3 in batches of 8 blocks. All share the pretrained model.
    """
    found = {name: re.findall(r"\w+|[^\w\s]", read_text(name)) for name in TEXTS}
    known = sorted({word for text in found.values() for word in text[:TASK_TOKENS]})
    number = {word: place for place, word in enumerate(known, start=UNKNOWN + 1)}
    tokens = {name: torch.tensor([number.get(word, UNKNOWN) for word in text]) for name, text in found.items()}
    later = torch.cat([text[TASK_TOKENS:] for text in tokens.values()])
    model = cached_encoder(
        f"word-transformer-{len(known)}-{len(later)}",
        lambda: WordTransformer(len(known) + 1),
        lambda made: _pretrain(made, later),
        seed=SEED,
    )
    return [
        text_recipe(
            model, text[:TASK_TOKENS], CONTEXT, name=name, lr=1e-3, epochs=5,
            about=f"the first {TASK_TOKENS:,} words of: {TEXTS[name].about}",
        )
        for name, text in tokens.items()
    ]  # fmt: skip


class WordTransformer(nn.Module):
    """Blocks of causal attention and a GELU layer, each after a LayerNorm; the readout is the embedding."""

    def __init__(self, vocabulary: int, context: int = CONTEXT, width: int = WIDTH, layers: int = LAYERS) -> None:
        """Draw the start.

        Args:
            vocabulary: different tokens.
            context: tokens at the most.
            width: of a token's vector.
            layers: how many blocks.
        """
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(context, width)
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.places.weight, std=0.02)
        self.blocks = nn.ModuleList(CausalBlock(width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Predict the next token at every place.

        Args:
            inputs: tokens, shape (n, length).

        Returns:
            Logits, shape (n, vocabulary, length), as the cross-entropy takes them.
        """
        hidden = self.tokens(inputs) + self.places.weight[: inputs.shape[1]]
        for block in self.blocks:
            hidden = block(hidden)
        logits: torch.Tensor = self.norm(hidden) @ self.tokens.weight.T
        return logits.transpose(1, 2)


class CausalBlock(nn.Module):
    """Causal attention of four heads, then a GELU layer of four times the width."""

    def __init__(self, width: int) -> None:
        """Draw the start.

        Args:
            width: of a token's vector.
        """
        super().__init__()
        self.before_attention, self.before_layer = nn.LayerNorm(width), nn.LayerNorm(width)
        self.joint, self.joined = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wider, self.narrower = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Add what both parts say.

        Args:
            hidden: shape (n, length, width).

        Returns:
            The same shape.
        """
        count, length, width = hidden.shape
        parts = self.joint(self.before_attention(hidden)).view(count, length, 3, HEADS, width // HEADS)
        queries, keys, values = parts.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        hidden = hidden + self.joined(mixed.transpose(1, 2).reshape(count, length, width))
        added: torch.Tensor = self.narrower(functional.gelu(self.wider(self.before_layer(hidden))))
        return hidden + added


def _pretrain(model: nn.Module, tokens: torch.Tensor) -> None:
    inputs, targets = blocks(tokens, CONTEXT)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PRETRAINING_LR)
    for _ in range(PRETRAINING_EPOCHS):
        for chosen in torch.randperm(len(inputs)).split(PRETRAINING_BATCH):
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(inputs[chosen]), targets[chosen], ignore_index=IGNORED)
            loss.backward()
            optimizer.step()
