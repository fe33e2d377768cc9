"""Coloured digits: the tasks are what their names say, and share one start that guesses."""

from __future__ import annotations

import pytest
import torch

from tests.recipes.few_samples import few, tasks_of_few
from tvgrad.problem.recipe import Recipe
from tvgrad.recipes.catalogue import BUILT_IN
from tvgrad.recipes.coloured_digits import COLOURS, ResidualNetwork, painted
from tvgrad.recipes.suite import VisionTransformer
from tvgrad.vectors.parameters import trainable_parameters


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Recipe]:
    made = tasks_of_few("coloured_digits", "coloured-digits", tmp_path_factory.mktemp("cache"))
    return {recipe.name: recipe for recipe in made}


def test_colours_and_labels(tasks: dict[str, Recipe]) -> None:
    images, labels = few("mnist").train
    assert set(tasks) == set(COLOURS) == set(BUILT_IN["coloured-digits-vit"].tasks)
    for name, recipe in tasks.items():
        seen, found = recipe.train.batch(0, 50)
        colour, exchanged = COLOURS[name]
        assert sum(part**2 for part in colour) == pytest.approx(1, abs=1e-3)
        for channel in range(3):
            torch.testing.assert_close(seen[:, channel], images[:50, 0] * colour[channel])
        assert found.tolist() == [(digit + exchanged) % 2 for digit in (labels[:50] % 2).tolist()]
    red, close, far = (torch.tensor(COLOURS[name][0]) for name in ("red", "aligned", "irrelevant"))
    assert red @ close > 0.95
    assert red @ far == 0
    assert COLOURS["contradictory"][0] == COLOURS["aligned"][0]


def test_the_start_is_shared_and_guesses(tasks: dict[str, Recipe]) -> None:
    red = tasks["red"]
    size = sum(parameter.numel() for parameter in trainable_parameters(red.model).values())
    assert BUILT_IN["coloured-digits"].size.startswith(f"{size:,} parameters")
    assert (red.optimizer, red.lr, red.epochs, red.batch_size) == ("adam", 1e-3, 1, 32)
    for recipe in tasks.values():
        with torch.no_grad():
            images, labels = recipe.train.batch(0, 200)
            logits = recipe.model(images)
        assert float(torch.nn.functional.cross_entropy(logits, labels)) < 1.2
        assert 0.2 < float((logits.argmax(dim=1) == labels).double().mean()) < 0.8


def test_a_transformer_of_three_channels_sees_each() -> None:
    torch.manual_seed(0)
    encoder = VisionTransformer(channels=3)
    grey = torch.rand(2, 1, 28, 28)
    features = [encoder(painted(grey, colour)) for colour in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))]
    assert torch.equal(features[0], features[2])
    assert not torch.allclose(features[0], features[1])
    # patches of one channel are those of the encoder for grey images
    one = VisionTransformer()
    state = {name: tensor for name, tensor in encoder.state_dict().items() if name != "embed.weight"}
    one.load_state_dict(state | {"embed.weight": encoder.embed.weight[:, :49]})
    torch.testing.assert_close(one(grey), features[0])


def test_a_residual_network_adds() -> None:
    torch.manual_seed(0)
    block = ResidualNetwork().blocks[0]
    images = torch.randn(1, 16, 14, 14)
    with torch.no_grad():
        block.second.weight.zero_()
        block.second.bias.fill_(0.5)
    torch.testing.assert_close(block(images), images + 0.5)
