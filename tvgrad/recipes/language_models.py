"""Language models of Hugging Face's transformers on texts: any AutoModelForCausalLM folder, tuned whole or by LoRA.

A text is cut into blocks of so many tokens; the loss is the mean over all tokens but the first of each block, and the
last, shorter block is padded with targets that do not count. Needs `transformers`, and `peft` for LoRA (extra `hf`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tvgrad.errors import TvgradError
from tvgrad.problem.rate_schedule import RateSchedule
from tvgrad.problem.recipe import Recipe
from tvgrad.problem.samples import Batch
from tvgrad.recipes.pretraining import Pair

IGNORED = -100
TEST_EVERY = 5
"""Of so many blocks the last one is for testing."""


@dataclass(frozen=True)
class Lora:
    """A LoRA adapter.

    Attributes:
        rank: of the factors.
        alpha: the change of a weight is `alpha / rank B A`.
        targets: names of the modules that are adapted.
        seed: of the random factors A; B begins at 0.
    """

    rank: int = 8
    alpha: int = 16
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    seed: int = 0


def language_recipes(
    folder: str | Path,
    texts: Mapping[str, str],
    *,
    context: int = 64,
    most_tokens: int | None = None,
    lora: Lora | None = None,
    lr: float | None = None,
    weight_decay: float | None = None,
    schedule: RateSchedule | None = None,
    about: str = "",
) -> list[Recipe]:
    """Make one task of each text.

    Args:
        folder: a causal language model and its tokenizer, as `save_pretrained` writes them, or a name on the hub.
        texts: name -> text.
        context: tokens that a block predicts.
        most_tokens: of each text at the most, from its beginning; None is all.
        lora: tune an adapter instead of the weights.
        lr: learning rate; by default 2e-5, and 2e-4 for an adapter.
        weight_decay: of AdamW, on matrices; biases and norms have none. None is 0.01, PyTorch's own, on all.
        schedule: warm-up and decline of the rate; None is constant.
        about: one line on the model.

    Returns:
        One recipe a text, of AdamW in batches of 8 blocks; all share the pretrained model.

    Raises:
        TvgradError: the library is not installed, the model cannot be loaded, or a text is shorter than a block.
    """
    model, tokenizer = load_language_model(folder)
    if lora is not None:
        model = adapted(model, lora)
    recipes = []
    for name, text in texts.items():
        tokens = torch.tensor(tokenizer(text)["input_ids"][:most_tokens])
        recipes.append(
            text_recipe(
                model,
                tokens,
                context,
                name=name,
                forward=token_logits,
                lr=lr or (2e-5 if lora is None else 2e-4),
                epochs=2,
                weight_decay=weight_decay,
                decay_vectors=weight_decay is None,
                schedule=schedule,
                about=f"{len(tokens):,} tokens of {name}{f', {about}' if about else ''}",
            )
        )
    return recipes


def text_recipe(model: nn.Module, tokens: torch.Tensor, context: int, *, name: str, **how: Any) -> Recipe:
    """Make the task of going on with a text: AdamW in batches of 8 blocks, the mean loss over tokens.

    Args:
        model: gives logits for each token, or does so by a `forward` among the options; copied.
        tokens: of the text, their numbers, shape (n,).
        context: tokens that a block predicts.
        name: the text's.
        how: further options of the recipe.

    Returns:
        The recipe.

    Raises:
        TvgradError: the text is shorter than five blocks.
    """  # noqa: DOC502 - raised by split_blocks
    train, test = split_blocks(tokens, context, name)
    return Recipe(
        copy.deepcopy(model),
        nn.CrossEntropyLoss(ignore_index=IGNORED),
        train,
        test=test,
        name=name,
        count=counted_tokens,
        metric=token_accuracy,
        optimizer="adamw",
        batch_size=8,
        **how,
    )


def load_language_model(folder: str | Path) -> tuple[Any, Any]:
    """Load a causal language model and its tokenizer, for derivatives of second order too.

    Args:
        folder: as `save_pretrained` writes them, or a name on the hub.

    Returns:
        The model, float32 and in eval mode, and the tokenizer.

    Raises:
        TvgradError: transformers is not installed, or nothing can be loaded.
    """
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError:
        raise TvgradError("a language model needs transformers: pip install 'tvgrad[hf]'") from None
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32, attn_implementation="eager")
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
    except (OSError, ValueError, KeyError) as error:
        words = " ".join(str(error).split())[:200]
        raise TvgradError(
            f"{folder} cannot be loaded as a causal language model ({words}): give a folder that save_pretrained made "
            "of model and tokenizer"
        ) from None
    model.config.use_cache = False  # keys of earlier tokens are for generation
    return model.eval(), tokenizer


def adapted(model: Any, lora: Lora) -> Any:
    """Put a LoRA adapter on a model.

    Args:
        model: of transformers.
        lora: rank, scale and modules.

    Returns:
        The model of peft; nothing but the factors requires a gradient.

    Raises:
        TvgradError: peft is not installed, or the model has no such module.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise TvgradError("LoRA needs peft: pip install peft") from None
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=list(lora.targets),
        lora_dropout=0.0,
    )
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(lora.seed)
            return get_peft_model(model, config).eval()
    except ValueError as error:
        raise TvgradError(f"LoRA does not fit the model ({error}): name other modules in targets") from None


def split_blocks(tokens: torch.Tensor, context: int, label: str) -> tuple[Pair, Pair]:
    """Cut tokens into blocks, and put every fifth of them aside for testing.

    Args:
        tokens: their numbers, shape (n,).
        context: tokens that a block predicts.
        label: what to call the text in a message.

    Returns:
        (inputs, targets) for training and for testing, each of shape (blocks, context).

    Raises:
        TvgradError: there are fewer tokens than five blocks have.
    """
    inputs, targets = blocks(tokens, context)
    if len(inputs) < TEST_EVERY:
        raise TvgradError(
            f"the text {label!r} has {len(tokens)} tokens, which is less than {TEST_EVERY} blocks of {context}: give a "
            "longer text, or a smaller context"
        )
    test = torch.arange(len(inputs)) % TEST_EVERY == TEST_EVERY - 1
    return (inputs[~test], targets[~test]), (inputs[test], targets[test])


def blocks(tokens: torch.Tensor, context: int) -> Pair:
    """Cut tokens into blocks of inputs and of targets, which are the tokens after them.

    Args:
        tokens: their numbers, shape (n,).
        context: tokens that a block predicts.

    Returns:
        Inputs and targets, shape (blocks, context). Every token but the first is a target once; what fills up the last
        block is token 0 and targets that do not count.
    """
    count = -(-max(len(tokens) - 1, 0) // context)
    inputs = torch.zeros(count * context, dtype=torch.long)
    targets = torch.full((count * context,), IGNORED)
    inputs[: len(tokens) - 1], targets[: len(tokens) - 1] = tokens[:-1], tokens[1:]
    return inputs.view(count, context), targets.view(count, context)


def token_logits(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Predict the next token at every place.

    Args:
        model: a causal language model.
        batch: inputs and targets.

    Returns:
        Logits, shape (n, vocabulary, context), as the cross-entropy takes them.
    """
    logits: torch.Tensor = model(input_ids=batch[0]).logits
    return logits.transpose(1, 2)


def counted_tokens(batch: Batch) -> torch.Tensor:
    """Count the targets of a batch.

    Args:
        batch: inputs and targets.

    Returns:
        How many count.
    """
    targets: torch.Tensor = batch[1]
    return (targets != IGNORED).sum()


def token_accuracy(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Share of the next tokens that are the most probable one.

    Args:
        output: logits, shape (n, vocabulary, context).
        target: shape (n, context).

    Returns:
        A scalar in [0, 1].
    """
    counts = target != IGNORED
    return (output.argmax(dim=1) == target)[counts].double().mean()
