"""The conceptual tasks against their definition, and the transformer against its formula written out."""

from __future__ import annotations

import math

import pytest
import torch

from tvgrad.errors import TvgradError
from tvgrad.recipes.catalogue import BUILT_IN, load_recipes
from tvgrad.recipes.conceptual import TokenMix, conceptual_pair, mixture_direction, pair_direction
from tvgrad.recipes.conceptual_transformer import ConceptualTransformer, hinge_loss

MIX = TokenMix(relevant=3, confusing=2, irrelevant=2, patterns=4, dimension=8)


def test_patterns_are_orthonormal_and_pairs_have_the_overlap() -> None:
    axes = MIX.axes(2, seed=5)
    torch.testing.assert_close(axes @ axes.T, torch.eye(6, dtype=torch.float64))
    for rho in (-1.0, -0.3, 0.0, 0.7, 1.0):
        second = pair_direction(axes, rho)
        assert float(second @ axes[0]) == pytest.approx(rho, abs=1e-12)
        assert float(second @ second) == pytest.approx(1)
        assert float((axes[2:] @ second).abs().max()) < 1e-12


def test_mixtures_are_unit_vectors() -> None:
    axes = MIX.axes(3, seed=5)
    mixed = mixture_direction(axes, [0.6, -0.5])
    assert (axes @ mixed).tolist()[:3] == pytest.approx([0.6, -0.5, math.sqrt(1 - 0.36 - 0.25)])
    assert float(mixed @ mixed) == pytest.approx(1)


def test_the_label_is_the_majority_sign_of_the_tasks_tokens() -> None:
    axes = MIX.axes(2, seed=0)
    mu = pair_direction(axes, 0.4)
    rows, labels = MIX.draw(200, torch.Generator().manual_seed(3))
    tokens = MIX.table(axes, mu)[torch.repeat_interleave(rows, MIX.repeats.long(), dim=1)]
    assert tokens.shape == (200, MIX.length, MIX.dimension)
    along = (tokens.double() @ mu).round(decimals=4)
    assert torch.equal(along.sum(1).sign().float(), labels)
    assert torch.equal((along == labels[:, None]).sum(1), torch.full((200,), 3))
    assert torch.equal((along == -labels[:, None]).sum(1), torch.full((200,), 2))
    assert 70 < int((labels > 0).sum()) < 130
    assert set(rows[:, 2:].unique().tolist()) == {2, 3, 4, 5}


def test_the_transformer_is_its_formula() -> None:
    draw = torch.Generator().manual_seed(1)
    model = ConceptualTransformer(5, 6, generator=draw).double()
    with torch.no_grad():
        for weights in model.parameters():
            weights.copy_(torch.randn(weights.shape, generator=draw))
    samples = torch.randn(3, 4, 5, generator=draw, dtype=torch.float64)
    w, v, a = (tensor.tolist() for tensor in (model.attention, model.value, model.readout))
    for sample, found in zip(samples.tolist(), model(samples).tolist(), strict=True):
        total = 0.0
        for query in sample:
            turned = [sum(row[i] * query[i] for i in range(5)) for row in w]
            scores = [math.exp(sum(x * y for x, y in zip(key, turned, strict=True))) for key in sample]
            mixed = [sum(s * key[i] for s, key in zip(scores, sample, strict=True)) / sum(scores) for i in range(5)]
            total += sum(
                sign * max(0.0, sum(x * y for x, y in zip(row, mixed, strict=True)))
                for sign, row in zip(a, v, strict=True)
            )
        assert found == pytest.approx(total / len(sample), rel=1e-5)  # the readout was rounded to float32


def test_tokens_given_once_with_how_often_they_occur_are_the_same_sample() -> None:
    draw = torch.Generator().manual_seed(2)
    model = ConceptualTransformer(MIX.dimension, generator=draw).double()
    tokens = 5 * torch.randn(3, 4, MIX.dimension, generator=draw, dtype=torch.float64)
    whole = torch.repeat_interleave(tokens, MIX.repeats.long(), dim=1)
    torch.testing.assert_close(model(tokens, MIX.repeats), model(whole))


def test_tokens_given_as_rows_of_a_table_are_the_same_sample() -> None:
    draw = torch.Generator().manual_seed(2)
    model = ConceptualTransformer(MIX.dimension, generator=draw).double()
    table = 5 * torch.randn(6, MIX.dimension, generator=draw, dtype=torch.float64)
    rows = torch.randint(6, (7, 4), generator=draw)
    torch.testing.assert_close(model(table, MIX.repeats, rows), model(table[rows], MIX.repeats))
    torch.testing.assert_close(model(table, None, rows), model(table[rows]))


def test_hinge_loss() -> None:
    assert float(hinge_loss(torch.tensor([2.0, 0.5, 0.5]), torch.tensor([1.0, 1.0, -1.0]))) == pytest.approx(2 / 3)


def test_the_built_in_recipes_are_such_pairs() -> None:
    for name, rho in (("irrelevant", 0.0), ("aligned", 0.5), ("contradictory", -0.5)):
        first, second = load_recipes(f"conceptual-{name}")
        assert BUILT_IN[f"conceptual-{name}"].tasks == (first.name, second.name)
        assert f"{sum(p.numel() for p in first.model.parameters()):,} parameters" in BUILT_IN[f"conceptual-{name}"].size
        assert len(first.train) == 256
        mus = []
        for recipe in (first, second):
            (tokens, labels), axes = recipe.train.batch(0, 64), TokenMix().axes(2, 20250410)
            mus.append((tokens.double() * labels[:, None, None].double()).mean((0, 1)) @ axes[:2].T)
        # what is left of a sample's mean is (6 - 2) / 10 of the task's pattern, up to irrelevant tokens
        assert (mus[1] / 0.4).tolist() == pytest.approx([rho, math.sqrt(1 - rho**2)], abs=1e-5)
        assert (mus[0] / 0.4).tolist() == pytest.approx([1, 0], abs=1e-5)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: conceptual_pair(1.5), "rho is the cosine of two tasks and lies between -1 and 1, not 1.5"),
        (lambda: pair_direction(MIX.axes(2, 0), -1.01), "not -1.01: give another one"),
        (lambda: TokenMix(patterns=40).axes(2, 0), "40 irrelevant patterns and 2 directions .* raise dimension to 42"),
        (lambda: TokenMix(relevant=2, confusing=2), "2 confusing tokens are no fewer than 2 label-relevant"),
        (lambda: TokenMix(patterns=0), "patterns must be a whole number of at least 1, not 0"),
        (lambda: mixture_direction(MIX.axes(3, 0), [0.9, 0.9]), "have the norm 1.27"),
    ],
)
def test_bad_input_is_one_sentence(make, said) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(TvgradError, match=said):
        make()
