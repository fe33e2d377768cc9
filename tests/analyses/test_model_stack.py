"""Stacked models against a plain loop over them with an optimizer of PyTorch."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from tvgrad.analyses.concept_grid import pair_tasks
from tvgrad.analyses.concept_training import ConceptSetting, concept_batches, concept_models, trained_concepts
from tvgrad.analyses.model_stack import ModelStack, added, chosen

from tvgrad.recipes.conceptual import TokenMix
from tvgrad.recipes.conceptual_transformer import ConceptualTransformer, hinge_loss

SETTING = ConceptSetting(TokenMix(3, 1, 2, 6, 10), steps=12, batch_size=8)


def models(count: int) -> list[nn.Module]:
    draw = torch.Generator().manual_seed(0)
    made = [ConceptualTransformer(5, 4, generator=draw).double() for _ in range(count)]
    for model in made:
        for weights in model.parameters():
            weights.data.mul_(30)
    return made


def test_training_is_that_of_a_loop_over_models() -> None:
    loop = models(3)
    stack = ModelStack(copy.deepcopy(loop))
    draw = torch.Generator().manual_seed(1)
    batches = [
        (
            torch.randn(3, 6, 4, 5, generator=draw, dtype=torch.float64),
            torch.randn(3, 6, generator=draw).sign().double(),
        )
        for _ in range(5)
    ]
    tuned = stack.trained(batches, hinge_loss, 0.3)
    for place, model in enumerate(loop):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
        for inputs, targets in batches:
            optimizer.zero_grad()
            hinge_loss(model(inputs[place]), targets[place]).backward()
            optimizer.step()
        for name, weights in model.named_parameters():
            torch.testing.assert_close(tuned[name][place], weights.detach())
            assert not torch.allclose(tuned[name][place], stack.start[name][place])
        shared = stack.outputs(tuned, batches[0][0][0], shared=True)
        own = stack.outputs(tuned, batches[0][0])
        with torch.no_grad():
            torch.testing.assert_close(shared[place], model(batches[0][0][0]))
            torch.testing.assert_close(own[place], model(batches[0][0][place]))


def test_a_model_does_not_depend_on_those_beside_it() -> None:
    many = [task for seed in range(2) for task in pair_tasks(SETTING, [-0.5, 0.0, 0.5], seed)]
    few = pair_tasks(SETTING, [0.5], 1)
    _, all_vectors = trained_concepts(SETTING, many)
    _, few_vectors = trained_concepts(SETTING, few)
    for name, vectors in few_vectors.items():
        torch.testing.assert_close(vectors[0], all_vectors[name][4], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(vectors[1], all_vectors[name][7], rtol=1e-4, atol=1e-6)


def test_pairs_share_their_start_and_not_their_samples() -> None:
    tasks = pair_tasks(SETTING, [0.5, -0.5], 3)
    start = concept_models(SETTING, tasks).start
    for tensor in start.values():
        assert torch.equal(tensor[0], tensor[1])
    tokens, labels = next(concept_batches(SETTING, tasks))
    assert torch.equal(labels[1], labels[2])  # overlaps of one seed differ in nothing but the pattern
    assert not torch.equal(labels[0], labels[1])
    assert tokens.shape == (3, 8, 4, 10)


def test_training_uses_one_thread_and_puts_the_number_back() -> None:
    before = torch.get_num_threads()
    seen: list[int] = []
    torch.set_num_threads(2)
    try:
        trained_concepts(SETTING, pair_tasks(SETTING, [0.5], 0), lambda *_: seen.append(torch.get_num_threads()))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}


def test_progress_counts_steps() -> None:
    told: list[tuple[int, int]] = []
    trained_concepts(SETTING, pair_tasks(SETTING, [0.5], 0), lambda done, total: told.append((done, total)))
    assert told == [(step, 12) for step in range(1, 13)]


def test_sums_of_task_vectors() -> None:
    base = {"w": torch.tensor([[1.0, 2.0]])}
    vector = {"w": torch.tensor([[10.0, 20.0]])}
    found = added(base, (torch.tensor([0.0, 1.0, -1.0]), vector), (torch.tensor([1.0, 1.0, 0.0]), vector))
    assert found["w"].tolist() == [[11.0, 22.0], [21.0, 42.0], [-9.0, -18.0]]
    assert chosen(found, [2, 0])["w"].tolist() == [[-9.0, -18.0], [11.0, 22.0]]
    assert base["w"].tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize("rho", [-0.6, 0.6])
def test_the_second_task_vector_writes_the_overlap_into_the_first_ones_logits(rho: float) -> None:
    """An identity: the change of W lies in the span of the task's own tokens, so that mu_1' dW mu_1 = rho^2 w_2."""
    tasks = pair_tasks(SETTING, [rho], 0)
    _, vectors = trained_concepts(SETTING, tasks)
    change = vectors["attention"][1].double()
    first, second = (task.table[0].double() for task in tasks)
    own = float(second @ change @ second)
    assert abs(own) > 1e-3
    assert float(first @ change @ first) == pytest.approx(rho**2 * own, rel=1e-3)
