"""Unlearning: Rouge-L, cut task vectors and the threshold against other ways to compute them; a small study whole."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from tvgrad.analyses import unlearning
from tvgrad.analyses.unlearning_methods import Lesson, load, lora_vector, low_rank, sparse, taken, train
from tvgrad.analyses.unlearning_scores import continued, probe_of, rouge_l, scores

from tvgrad.errors import TvgradError
from tvgrad.problem.recipe import Recipe
from tvgrad.recipes import word_model
from tvgrad.recipes.catalogue import BUILT_IN
from tvgrad.recipes.language_models import blocks, counted_tokens
from tvgrad.recipes.word_model import WordTransformer, words

VOCABULARY, CONTEXT = 9, 8


def language(name: str, seed: int, count: int = 41) -> Recipe:
    tokens = torch.randint(1, VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed))
    torch.manual_seed(0)
    model = WordTransformer(VOCABULARY, CONTEXT, width=8, layers=1)
    loss = nn.CrossEntropyLoss(ignore_index=-100)
    return Recipe(
        model, loss, blocks(tokens, CONTEXT), count=counted_tokens, name=name, optimizer="adamw", lr=0.02, batch_size=2
    )


@pytest.fixture(scope="module")
def recipes() -> list[Recipe]:
    return [language(name, seed) for seed, name in enumerate(("one", "two", "licence"))]


def longest_common(said: list[int], truth: list[int]) -> int:
    """By trying every subsequence."""
    for length in range(len(said), 0, -1):
        kept = {tuple(said[i] for i in chosen) for chosen in itertools.combinations(range(len(said)), length)}
        if kept & {tuple(truth[i] for i in chosen) for chosen in itertools.combinations(range(len(truth)), length)}:
            return length
    return 0


def test_rouge_l_is_the_f1_of_the_longest_common_subsequence() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        said, truth = (torch.randint(0, 4, (n,), generator=generator).tolist() for n in (6, 8))
        common = longest_common(said, truth)
        expected = 2 * common / (len(said) + len(truth))  # the F1 of common / 6 and common / 8
        assert rouge_l(said, truth) == pytest.approx(expected)
    assert rouge_l([1, 2], [3, 4]) == 0.0


def test_what_a_model_says_is_its_most_probable_token_each_time(recipes: list[Recipe]) -> None:
    probe = probe_of(recipes[0], prompts=3)
    assert probe.prompts.shape == probe.truth.shape == (3, CONTEXT // 2)
    inputs, targets = recipes[0].train.batch(0, 5)
    assert torch.equal(torch.cat([probe.prompts, probe.truth], dim=1)[0], inputs[0])
    assert torch.equal(probe.truth[-1, :-1], targets[4, CONTEXT // 2 - 1 : -2])
    said = continued(recipes[0].model, probe.prompts, 4, recipes[0])
    whole = torch.cat([probe.prompts, said], dim=1)
    predicted = recipes[0].model(whole[:, :-1]).argmax(dim=1)
    assert torch.equal(predicted[:, -4:], said)


def test_the_loss_of_a_text_is_the_full_batchs(recipes: list[Recipe]) -> None:
    found = scores(recipes[0].model, {"one": probe_of(recipes[0], prompts=2)})
    assert found["loss_one"] == pytest.approx(recipes[0].objective().value(), rel=1e-6)


def test_cut_vectors_are_the_truncated_svd_and_the_largest_entries() -> None:
    generator = torch.Generator().manual_seed(1)
    vector = {"wide": torch.randn(5, 9, generator=generator), "tall": torch.randn(9, 5, generator=generator)}
    vector["bias"] = torch.randn(7, generator=generator)
    cut = low_rank(vector, 2)
    for name in ("wide", "tall"):
        left, values, right = np.linalg.svd(vector[name].double().numpy())
        truth = left[:, :2] * values[:2] @ right[:2]
        np.testing.assert_allclose(cut[name].numpy(), truth, atol=1e-5)
    assert cut["bias"] is vector["bias"]
    kept = sparse(vector, 0.2)
    for name, tensor in kept.items():
        count = max(1, int(0.2 * tensor.numel()))
        assert int((tensor != 0).sum()) == count
        assert float(tensor.abs().sum()) == pytest.approx(float(vector[name].flatten().abs().topk(count).values.sum()))


def test_an_adapter_has_its_rank_and_learns(recipes: list[Recipe]) -> None:
    model = recipes[0].model
    start, before = taken(model), recipes[0].objective().value()
    vector = lora_vector(model, recipes[0], 2, Lesson(5))
    assert all(torch.equal(tensor, start[name]) for name, tensor in taken(model).items())
    moved = [name for name, tensor in vector.items() if tensor.any()]
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert set(moved) == linear
    assert all(torch.linalg.matrix_rank(vector[name]) == 2 for name in moved)
    assert recipes[0].objective().value({name: start[name] + vector[name] for name in start}) < before


def test_ascent_forgets_and_training_learns(recipes: list[Recipe]) -> None:
    model, losses = recipes[1].model, []
    start = taken(model)
    for sign in (1.0, -1.0):
        load(model, start)
        assert list(train(model, [recipes[1]], Lesson(3, sign=sign))) == [1, 2, 3]
        losses.append(recipes[1].objective().value())
    load(model, start)
    assert losses[0] < recipes[1].objective().value() < losses[1]


def test_the_strength_of_forgetting_lies_on_a_straight_line_between_two() -> None:
    columns = ["seed", "text", "method", "strength", "loss_one", "loss_two", "rouge_one", "rouge_two"]
    rows = [
        [0, "one", "none", 0.0, 1.0, 2.0, 0.8, 0.9],
        [0, "one", "dense", 1.0, 1.5, 2.1, 0.6, 0.9],
        [0, "one", "dense", 3.0, 2.5, 2.3, 0.2, 0.7],
        [0, "one", "weak", 1.0, 1.1, 2.0, 0.8, 0.9],
        [0, "one", "wild", 1.0, math.inf, math.inf, 0.0, 0.0],
    ]
    found = unlearning.forgetting(pd.DataFrame(rows, columns=columns), ["one", "two"]).set_index("method")
    dense = found.loc["dense"]
    assert [dense["strength"], dense["rise_one"], dense["rise_two"]] == pytest.approx([2.0, 1.0, 0.2])
    assert [dense["rouge_one"], dense["rouge_two"]] == pytest.approx([0.4, 0.8])
    assert math.isnan(found.loc["weak", "strength"])
    assert math.isinf(found.loc["wild", "rise_two"])


def test_a_study_measures_every_method_and_goes_on_where_it_was(recipes, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(unlearning, "load_recipes", lambda target: recipes)
    start = taken(recipes[0].model)
    options = {"seeds": 2, "learning": 1, "epochs": 1, "against": 2, "prompts": 2, "strengths": (1.0, 9.0), "lora": 1}
    options |= {"ranks": (1,), "shares": (0.5,), "texts": ("two",), "cells": str(tmp_path / "cells")}
    told = []
    result = unlearning.analyse("mine", progress=lambda done, total: told.append((done, total)), **options)
    assert told == [(1, 2), (2, 2)]
    assert all(torch.equal(tensor, start[name]) for name, tensor in taken(recipes[0].model).items())
    methods = ["dense", "rank 1", "largest 50 %", "LoRA 1", "ascent", "others"]
    assert list(result.table["method"]) == 2 * methods
    assert result.outcome in {"holds", "fails", "undecided"}
    assert [verdict.partition(":")[0] for verdict in result.verdicts] == methods
    result.save(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    monkeypatch.setattr(unlearning, "train", None)  # nothing is trained again
    again = unlearning.analyse("mine", **options)
    pd.testing.assert_frame_equal(again.table, result.table)
    with pytest.raises(TvgradError, match="give another folder"):
        unlearning.analyse("mine", **{**options, "epochs": 2})


def test_a_study_of_the_first_blocks_looks_at_no_other(recipes, monkeypatch) -> None:
    seen = []

    def looked(model, start, known, given, probes, study, *, text, seed):
        inputs, _ = given[text].train.batch(0, len(given[text].train))
        seen.append(torch.equal(inputs, recipes[0].train.batch(0, 2)[0]) and len(probes[text].prompts) == 2)
        losses = {f"{kind}_{name}": 1.0 for kind in ("loss", "rouge") for name in given}
        told = {"seed": seed, "text": text} | losses
        return [told | {"method": "none", "strength": 0.0}, told | {"method": "dense", "strength": 1.0}]

    monkeypatch.setattr(unlearning, "load_recipes", lambda target: recipes)
    monkeypatch.setattr(unlearning, "_of_text", looked)
    result = unlearning.analyse("mine", seeds=1, learning=1, blocks=2, texts=("one",))
    assert seen == [True]
    assert len(recipes[0].train) == 5
    assert "mine, 2 blocks of each text at the most, 1 seed, " in result.evidence


def test_methods_are_compared_model_by_model(recipes, monkeypatch) -> None:
    """The unrelated text differs from seed to seed, the difference of two methods does not."""

    def rows(model, start, known, given, probes, study, *, text, seed):
        told = {"seed": seed, "text": text, "rouge_one": 1.0, "rouge_two": 1.0, "rouge_licence": 1.0, "loss_two": 1.0}
        harm = {"none": 0.0, "dense": 0.1 * seed, "ascent": 0.1 * seed + 0.3, "others": 0.0}
        forgets = {"none": 0.0, "dense": 1.0, "ascent": 1.0, "others": 0.5}
        return [
            told | {"method": name, "strength": float(name != "none")}
            | {"loss_one": 1 + forgets[name], "loss_licence": 1 + harm[name]}
            for name in harm
        ]  # fmt: skip

    monkeypatch.setattr(unlearning, "load_recipes", lambda target: recipes)
    monkeypatch.setattr(unlearning, "_of_text", rows)
    found = unlearning.analyse("mine", seeds=3, learning=1, texts=("one",)).verdicts
    assert found[0].endswith("is higher by 0.100 [-0.148, 0.348], the alike one's by 0.000 [0.000, 0.000]")
    assert found[1].endswith("; the unrelated one's by 0.300 [0.300, 0.300] more than with the dense vector")
    assert found[2] == "others: fails, forgets none of 3 texts at the strengths tried"


def test_prompts_of_several_texts_are_continued_as_each_alone(recipes: list[Recipe]) -> None:
    probes = {recipe.name: probe_of(recipe, count) for recipe, count in zip(recipes, (3, 2, 1), strict=True)}
    together = scores(recipes[0].model, probes)
    for name, probe in probes.items():
        alone = scores(recipes[0].model, {name: probe})
        assert alone == {key: pytest.approx(together[key]) for key in alone}


def test_what_is_no_language_is_said_in_one_sentence(recipes, monkeypatch) -> None:
    plain = Recipe(nn.Linear(3, 2), nn.CrossEntropyLoss(), (torch.randn(6, 3), torch.arange(6) % 2), name="licence")
    cases = [
        ([*recipes[:2], plain], {}, "the task 'licence' is none of language"),
        (recipes[:2], {}, "and none called 'licence'"),
        (recipes, {"texts": ("novel",)}, "and none called 'novel'"),
        ([recipes[0], recipes[2]], {}, "two alike ones and another"),
        (recipes, {"seeds": 0}, "seeds must be a finite number above 0, not 0"),
        (recipes, {"rate": math.nan}, "rate must be a finite number above 0, not nan"),
        (recipes, {"strengths": (1.0, math.inf)}, "strengths must be a finite number above 0, not inf"),
        (recipes, {"ranks": (0,)}, "ranks must be a finite number above 0, not 0"),
        (recipes, {"shares": (1.5,)}, "up to 1: 1.5 does not"),
        (recipes, {"blocks": -1}, "blocks must be at least 0, not -1"),
        (recipes, {"texts": ("licence",)}, "'licence' is the unrelated text"),
    ]
    for given, options, said in cases:
        monkeypatch.setattr(unlearning, "load_recipes", lambda target, given=given: given)
        with pytest.raises(TvgradError, match=said) as caught:
            unlearning.analyse("mine", **options)
        assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_the_built_in_texts_share_one_model_of_the_listed_size(monkeypatch) -> None:
    monkeypatch.setattr(word_model, "PRETRAINING_EPOCHS", 0)
    monkeypatch.setattr(word_model, "cached_encoder", lambda key, build, pretrain, seed: build())
    made = words()
    said = BUILT_IN["words"]
    assert tuple(recipe.name for recipe in made) == said.tasks
    assert f"{sum(parameter.numel() for parameter in made[0].model.parameters()):,} parameters" in said.size
    assert f"up to {max(len(recipe.train) for recipe in made)} blocks" in said.size


def test_a_word_is_predicted_from_those_before_it_alone() -> None:
    model = WordTransformer(VOCABULARY, CONTEXT, width=8, layers=2)
    tokens = torch.randint(0, VOCABULARY, (2, CONTEXT))
    changed = tokens.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % VOCABULARY
    first, second = model(tokens), model(changed)
    torch.testing.assert_close(first[:, :, :5], second[:, :, :5])
    assert not torch.allclose(first[:, :, 5:], second[:, :, 5:])
