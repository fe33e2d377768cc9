"""How well a language model knows a text: the loss of its tokens, and Rouge-L of what it continues greedily."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from tvgrad.errors import TvgradError
from tvgrad.problem.recipe import Recipe

CHUNK = 16
"""Blocks that are evaluated at once."""


@dataclass(frozen=True)
class TextProbe:
    """A text and the places in it where a model is asked to go on.

    Attributes:
        recipe: its task.
        prompts: tokens, shape (n, length).
        truth: what follows each of them, shape (n, length).
    """

    recipe: Recipe
    prompts: torch.Tensor
    truth: torch.Tensor


def probe_of(recipe: Recipe, prompts: int) -> TextProbe:
    """Cut prompts out of a text: the first half of a block, which is to be continued by the second.

    Args:
        recipe: a task of language, with inputs and targets of one token each.
        prompts: how many at the most, evenly spaced.

    Returns:
        The probe.

    Raises:
        TvgradError: the task is none of language.
    """
    batch = recipe.train.batch(0, len(recipe.train))
    pair = isinstance(batch, (tuple, list)) and len(batch) == 2 and all(isinstance(p, torch.Tensor) for p in batch)
    if not pair or batch[0].shape != batch[1].shape or batch[0].is_floating_point() or batch[0].ndim != 2:
        raise TvgradError(
            f"the task {recipe.name!r} is none of language, of which each token is a target: give --on words, smollm2 "
            "or a recipe of tvgrad.recipes.language_models"
        )
    inputs, targets = batch
    whole = (targets >= 0).all(dim=1).nonzero().flatten()
    chosen = whole[torch.linspace(0, len(whole) - 1, min(prompts, len(whole))).round().long()]
    half = inputs.shape[1] // 2
    return TextProbe(recipe, inputs[chosen, :half], targets[chosen, half - 1 : -1])


@torch.no_grad()
def scores(model: nn.Module, probes: Mapping[str, TextProbe]) -> dict[str, float]:
    """Measure every text.

    Args:
        model: the tasks' model, with the weights in question.
        probes: name of a text -> probe.

    Returns:
        `loss_<name>`, the mean over its tokens, and `rouge_<name>`, the mean over its prompts.
    """
    found, said = {}, _all_continued(model, probes)
    for name, probe in probes.items():
        loss, total, count = probe.recipe.batch_loss(model), 0.0, 0.0
        for batch in probe.recipe.train.chunks(CHUNK):
            weight = loss.weight(batch)
            total += weight * float(loss(batch))
            count += weight
        found |= {f"loss_{name}": total / count, f"rouge_{name}": mean_rouge(said[name], probe.truth.tolist())}
    return found


def _all_continued(model: nn.Module, probes: Mapping[str, TextProbe]) -> dict[str, list[list[int]]]:
    """What the model says to all prompts; those of one shape together: a large model takes as long for one as for all.

    Returns:
        Name of a text -> one list of tokens a prompt.
    """
    alike: dict[tuple[int, ...], list[str]] = {}
    for name, probe in probes.items():
        alike.setdefault((probe.prompts.shape[1], probe.truth.shape[1]), []).append(name)
    said: dict[str, list[list[int]]] = {}
    for (_, length), names in alike.items():
        prompts = [probes[name].prompts for name in names]
        tokens = continued(model, torch.cat(prompts), length, probes[names[0]].recipe)
        parts = tokens.split([len(one) for one in prompts])
        said |= {name: part.tolist() for name, part in zip(names, parts, strict=True)}
    return said


def continued(model: nn.Module, prompts: torch.Tensor, length: int, recipe: Recipe) -> torch.Tensor:
    """Let a model go on, by the most probable token each time.

    Args:
        model: the tasks' model.
        prompts: shape (n, prompt).
        length: tokens to add.
        recipe: how the model is called.

    Returns:
        The added tokens, shape (n, length).
    """
    generate = getattr(model, "generate", None)
    if generate is not None:
        said = generate(
            input_ids=prompts, attention_mask=torch.ones_like(prompts), min_new_tokens=length, max_new_tokens=length,
            do_sample=False, use_cache=True,
        )  # fmt: skip
        return torch.as_tensor(said[:, prompts.shape[1] :])
    tokens, output = prompts, recipe.batch_loss(model).output
    for _ in range(length):
        logits = output((tokens, tokens))
        tokens = torch.cat([tokens, logits[:, :, -1].argmax(dim=1, keepdim=True)], dim=1)
    return tokens[:, prompts.shape[1] :]


def mean_rouge(said: Sequence[Sequence[int]], truth: Sequence[Sequence[int]]) -> float:
    """Average Rouge-L over pairs.

    Args:
        said: sequences of tokens.
        truth: as many others.

    Returns:
        The mean.
    """
    return sum(rouge_l(one, other) for one, other in zip(said, truth, strict=True)) / len(truth)


def rouge_l(said: Sequence[int], truth: Sequence[int]) -> float:
    """Rouge-L of a sequence of tokens: the F1 of their longest common subsequence (Lin, 2004).

    Args:
        said: tokens of the model.
        truth: tokens of the text.

    Returns:
        In [0, 1].
    """
    before = [0] * (len(truth) + 1)
    for token in said:
        row = [0]
        for place, other in enumerate(truth, start=1):
            row.append(before[place - 1] + 1 if token == other else max(before[place], row[-1]))
        before = row
    common = before[-1]
    if common == 0:
        return 0.0
    precision, recall = common / len(said), common / len(truth)
    return 2 * precision * recall / (precision + recall)
