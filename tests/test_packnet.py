"""PackNet: weights of earlier tasks stay, and each task is answered by what its own stage left."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from m2distill_policy.errors import ConfigError
from tests.test_stage import CONTRACT, config, memory_of_one, start, task_data
from training.lifelong.stage import to_inputs, train_stage
from training.lifelong.strategies import make_strategy
from training.lifelong.strategies.packnet import PackNet, PackNetConfig, prune
from training.models.resnet_t import ResNetT

RUN = config(strategy="packnet", sections=(PackNetConfig(prune=0.75, retrain=0.5),))


def _learn(policy: ResNetT, strategy: PackNet, stage: int, folder: Path) -> None:
    folder.mkdir()
    train_stage(policy, strategy, task_data(stage), RUN, stage, folder, lambda s, n, t: None, lambda p: None)


def _strategy() -> PackNet:
    strategy = make_strategy(RUN, memory_of_one(RUN), CONTRACT.history)
    assert isinstance(strategy, PackNet)
    return strategy


def test_the_smallest_free_weights_go() -> None:
    weight = torch.tensor([[5.0, -1.0, 2.0], [0.5, -4.0, 3.0]])
    free = torch.tensor([[False, True, True], [True, True, False]])
    prune(weight, free, 0.5)
    assert weight.tolist() == [[5.0, 0.0, 2.0], [0.0, -4.0, 3.0]]
    equal = torch.ones(4, 4)
    prune(equal, torch.ones(4, 4, dtype=torch.bool), 0.75)
    assert int((equal == 0).sum()) == 12, "by rank, also where all are the same"


def test_a_task_is_answered_by_what_its_own_stage_left(tmp_path: Path) -> None:
    policy, strategy = start(RUN), _strategy()
    _learn(policy, strategy, 0, tmp_path / "first")
    first = {name: values.clone() for name, values in policy.state_dict().items()}
    owner = {name: values.clone() for name, values in strategy.state.items()}
    for name, values in owner.items():
        share = float((values == 1).float().mean())
        assert share == pytest.approx(0.25, abs=0.02) or values.numel() < 100, (name, share)
        assert not first[name][values == 0].any(), "what is free is zero"

    second = _strategy()
    second.state = owner
    _learn(policy, second, 1, tmp_path / "second")
    now = {name: values.clone() for name, values in policy.state_dict().items()}
    moved = 0
    for name, before in first.items():
        if name in owner:
            assert torch.equal(now[name][owner[name] == 1], before[owner[name] == 1]), name
            moved += int((second.state[name] == 2).sum())
        else:
            assert torch.equal(now[name], before), f"{name}: fixed after the first task"
    assert moved, "the second task got no weights of its own"

    masked = {n: torch.where(second.state[n] == 1, v, 0.0) if n in owner else v for n, v in now.items()}
    inputs = to_inputs(task_data(0).windows(np.random.default_rng(0), 4, 10), torch.device("cpu"))
    answers = []
    for weights in (first, masked, now):
        policy.load_state_dict(weights)
        with torch.no_grad():
            answers.append(policy.eval()(inputs).mixture.means)
    assert torch.equal(answers[0], answers[1]) and not torch.equal(answers[0], answers[2])


def test_a_stage_that_ends_unpruned_leaves_nothing_free() -> None:
    policy, strategy = start(RUN), _strategy()
    strategy.end_stage(policy, lambda number: torch.zeros(()))
    assert set(strategy.state) == {name for name, p in policy.named_parameters() if p.dim() > 1}
    assert all(torch.equal(values == 1, policy.state_dict()[name] != 0) for name, values in strategy.state.items())


@pytest.mark.parametrize("setting", [{"prune": 0.0}, {"prune": 1.0}, {"retrain": 1.5}])
def test_settings_out_of_range_are_refused(setting: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"packnet\.\w+ is"):
        PackNetConfig(**setting)


def test_checkpoints_before_the_pruning_are_not_chosen_from() -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.candidates is 2, and strategy=packnet prunes"):
        dataclasses.replace(RUN, evaluation=dataclasses.replace(RUN.evaluation, candidates=2))
