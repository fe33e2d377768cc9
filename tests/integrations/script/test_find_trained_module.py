"""Which module an optimizer's tensors belong to, and what it is called."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from tvgrad.errors import TvgradError
from tvgrad.integrations.script.find_trained_module import choose, trained_modules


def found_for(optimizer: torch.optim.Optimizer) -> list:
    return trained_modules(optimizer, sys._getframe(1))


def test_the_whole_model_is_found_from_its_head() -> None:
    backbone = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    backbone[0].requires_grad_(False)
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.1)
    found = found_for(optimizer)
    assert found[0].root is backbone
    assert list(found[0].parameters) == ["1.weight", "1.bias"]
    assert found[0].label == "backbone"
    assert choose(found[:1], None) is found[0]


def test_a_compiled_model_goes_by_its_own_names() -> None:
    net = nn.Linear(3, 2)
    compiled = torch.compile(net, backend="eager")
    found = found_for(torch.optim.SGD(compiled.parameters(), lr=0.1))
    assert found[0].root is net
    assert list(found[0].parameters) == ["weight", "bias"]
    assert found[0].label in {"net", "compiled"}


def test_two_wrappers_round_one_model() -> None:
    net = nn.Linear(3, 2)
    wrappers = [nn.Sequential(net, nn.ReLU()), nn.Sequential(net, nn.Tanh())]
    found = found_for(torch.optim.SGD(net.parameters(), lr=0.1))
    assert found[0].root is net
    assert len(wrappers) == 2


def test_two_optimizers_are_listed_and_one_is_picked() -> None:
    generator, critic = nn.Linear(3, 2), nn.Linear(2, 1)
    first = torch.optim.Adam(generator.parameters())
    second = torch.optim.SGD(critic.parameters(), lr=0.1)
    found = [one for one in found_for(first) if one.optimizer in {first, second}]
    with pytest.raises(TvgradError, match=r"generator \(8 parameters.*critic \(3 parameters"):
        choose(found, None)
    assert choose(found, "generator") is found[0]
    assert choose(found, "critic") is None
    with pytest.raises(TvgradError, match="no model called 'teacher'"):
        choose(found, "teacher")


def test_a_part_that_is_frozen_for_the_moment_is_trained() -> None:
    """As in Lightning, whose `toggle_optimizer` freezes what the stepping optimizer does not hold."""
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.1) for part in net]
    net[1].requires_grad_(False)
    found = [one for one in found_for(optimizers[0]) if one.root is net]
    whole = choose(found, None)
    assert whole is not None
    assert list(whole.parameters) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert whole.optimizers == tuple(optimizers)


def test_an_optimizer_that_wraps_another_counts_once() -> None:
    net = nn.Linear(3, 2)
    base = torch.optim.SGD(net.parameters(), lr=0.1)
    outer = torch.optim.Adam(net.parameters())
    assert not [one for one in found_for(outer)[1:] if one.optimizer is base]


def test_modules_that_no_module_holds_are_joined() -> None:
    head, keys = nn.Linear(4, 2), nn.Sequential(nn.Linear(3, 4), nn.Tanh())
    around = nn.DataParallel(head)
    idle = nn.Linear(3, 4)
    optimizer = torch.optim.SGD([*keys.parameters(), *around.parameters()], lr=0.1)
    later = torch.optim.Adam(head.parameters())
    found = [one for one in found_for(optimizer) if one.optimizer in {optimizer, later}]
    whole = choose(found, None)
    assert whole is not None
    names = ["head.weight", "head.bias", "keys_2.0.weight", "keys_2.0.bias"]
    assert list(found[0].parameters) == names
    assert found[0].parameters["head.weight"] is head.weight
    assert (whole.label, whole.optimizers) == ("head+keys_2", (optimizer, later))
    assert not any(one is idle for one in whole.root.modules())

    def trains(part: nn.Module) -> list[str]:
        assert part is head
        return list(found_for(torch.optim.SGD([*keys.parameters(), *part.parameters()], lr=0.1))[0].parameters)

    assert trains(head) == names


def test_tensors_without_a_module() -> None:
    loose = torch.zeros(3, requires_grad=True)
    with pytest.raises(TvgradError, match=r"belong to no torch.nn.Module"):
        found_for(torch.optim.SGD([loose], lr=0.1))
    with pytest.raises(TvgradError, match=r"belong to no torch.nn.Module"):
        found_for(torch.optim.SGD([loose, *nn.Linear(2, 1).parameters()], lr=0.1))
