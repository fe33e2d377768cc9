"""A rule for each group of parameters, against PyTorch's optimizers with the same groups."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from torch import nn

from tvgrad.errors import TvgradError
from tvgrad.update_rules.from_optimizer import rule_of_parameters
from tvgrad.update_rules.grouped import GroupedOptimizers, GroupedRule, coefficients_by_name, is_linear
from tvgrad.update_rules.rules import SGD, AdamW, Momentum, linear_rule, rule_from_dict
from tvgrad.update_rules.trajectory import Trajectory

SHAPES = {"first.weight": (3, 2), "first.bias": (3,), "last.weight": (2, 3), "frozen": (2,)}
Named = dict[str, nn.Parameter]


def parameters() -> Named:
    torch.manual_seed(0)
    return {name: nn.Parameter(torch.randn(shape, dtype=torch.float64)) for name, shape in SHAPES.items()}


def decay_groups(named: Named) -> list[torch.optim.Optimizer]:
    groups = [
        {"params": [named["first.weight"], named["last.weight"]], "weight_decay": 0.3},
        {"params": [named["first.bias"]], "weight_decay": 0.0},
        {"params": []},
    ]
    return [torch.optim.AdamW(groups, lr=0.01)]


def two_optimizers(named: Named) -> list[torch.optim.Optimizer]:
    first = torch.optim.SGD([named["first.weight"], named["first.bias"]], lr=0.1, momentum=0.9, weight_decay=0.2)
    return [first, torch.optim.Adam([named["last.weight"]], lr=0.02, amsgrad=True)]


@pytest.mark.parametrize("optimizers_of", [decay_groups, two_optimizers])
def test_the_trajectory_is_that_of_the_optimizers(
    optimizers_of: Callable[[Named], list[torch.optim.Optimizer]],
) -> None:
    named = parameters()
    start = {name: parameter.detach().clone() for name, parameter in named.items()}
    optimizers = optimizers_of(named)
    rule = rule_of_parameters(optimizers, {id(tensor): name for name, tensor in named.items()})
    assert isinstance(rule, GroupedRule)
    assert rule_from_dict(json.loads(json.dumps(rule.to_dict()))) == rule
    assert rule.of("frozen") is None
    assert rule.simplified(SHAPES) is rule
    followed = Trajectory(rule, start)
    copies = {name: nn.Parameter(tensor.clone()) for name, tensor in start.items()}
    again = GroupedOptimizers(rule, copies)
    for number in range(5):
        for name, parameter in named.items():
            parameter.grad = torch.randn(SHAPES[name], dtype=torch.float64)
            copies[name].grad = parameter.grad.clone()
        followed.step({name: parameter.grad for name, parameter in named.items() if parameter.grad is not None})
        for optimizer in optimizers:
            optimizer.step()
        again.step(number)
    for name, parameter in named.items():
        reached = start[name] + followed.task_vector[name]
        torch.testing.assert_close(reached, parameter.detach(), rtol=1e-12, atol=1e-13)
        assert torch.equal(copies[name], parameter)


def test_one_group_of_all_parameters_is_a_plain_rule() -> None:
    named = parameters()
    names = {id(tensor): name for name, tensor in named.items()}
    assert rule_of_parameters([torch.optim.SGD(named.values(), lr=0.1)], names) == SGD(0.1)
    halves = list(named.values())
    split = torch.optim.SGD([{"params": halves[:2]}, {"params": []}, {"params": halves[2:]}], lr=0.1)
    alike = rule_of_parameters([split], names)
    assert isinstance(alike, GroupedRule)
    assert alike.simplified(SHAPES) == SGD(0.1)


def test_what_a_grouped_rule_says_of_itself() -> None:
    rule = GroupedRule((Momentum(0.1, 0.5), SGD(0.2, weight_decay=0.1)), (("a",), ("b",)))
    assert (rule.name, rule.decays, is_linear(rule)) == ("momentum and sgd", True, True)
    assert not rule.without_decay().decays
    assert rule.momentum_weights(3).tolist() == [pytest.approx([0.175, 0.15, 0.1]), pytest.approx([0.2] * 3)]
    assert coefficients_by_name(rule, rule.momentum_weights(2).sum(axis=-1)) == pytest.approx({"a": 0.25, "b": 0.4})
    scheduled = rule.with_lrs([(0.1, 0.2, 0.3), (0.4, 0.5, 0.6)]).until(2)
    assert [part.lr for part in scheduled.parts] == [(0.1, 0.2), (0.4, 0.5)]
    assert not is_linear(GroupedRule((SGD(0.1), AdamW(0.1)), (("a",), ("b",))))
    with pytest.raises(TvgradError, match="rules of their own"):
        linear_rule(rule)
    with pytest.raises(TvgradError, match="a is in two groups"):
        GroupedRule((SGD(0.1), SGD(0.2)), (("a", "b"), ("a",)))
    with pytest.raises(TvgradError, match="1 rules were given for 2 groups"):
        GroupedRule((SGD(0.1),), (("a",), ("b",)))


def test_parameters_that_two_optimizers_hold_have_no_rule() -> None:
    named = parameters()
    both = [torch.optim.SGD(named.values(), lr=0.1), torch.optim.SGD([named["frozen"]], lr=0.1)]
    with pytest.raises(TvgradError, match="frozen is in two groups"):
        rule_of_parameters(both, {id(tensor): name for name, tensor in named.items()})
