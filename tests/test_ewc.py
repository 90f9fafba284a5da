"""Elastic weight consolidation: what it holds, and how hard."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from m2distill_policy.errors import ConfigError
from tests.test_stage import start
from tests.training_fixtures import CONTRACT, config, task_data
from training.lifelong.memory import Memory
from training.lifelong.stage import end_stage, train_stage
from training.lifelong.strategies import make_strategy
from training.lifelong.strategies.ewc import Ewc, EwcConfig
from training.models.resnet_t import ResNetT
from training.run_config import RunConfig

RUN = config(strategy="ewc", sections=(EwcConfig(weight=50.0, batches=3),))


def _strategy(run: RunConfig = RUN) -> Ewc:
    made = make_strategy(run, Memory(dataclasses.replace(run.memory, episodes=0)), CONTRACT.history)
    assert isinstance(made, Ewc)
    return made


def _learn(policy: ResNetT, strategy: Ewc, run: RunConfig, stage: int, folder: Path) -> list[dict[str, float]]:
    seen: list[dict[str, float]] = []
    folder.mkdir()
    train_stage(policy, strategy, task_data(stage), run, stage, folder, lambda s, n, t: seen.append(t), lambda p: None)
    return seen


def test_what_is_held_is_the_mean_squared_gradient_and_fades() -> None:
    policy = start(RUN)
    weight = policy.text.weight
    strategy = _strategy()

    def imitate(number: int) -> torch.Tensor:
        return (number + 1.0) * weight.sum()

    strategy.end_stage(policy, imitate)
    assert torch.allclose(strategy.state["text.weight"], torch.full_like(weight, (1 + 4 + 9) / 3))
    assert not strategy.state["text.bias"].any()
    strategy.end_stage(policy, imitate)
    assert torch.allclose(strategy.state["text.weight"], torch.full_like(weight, 1.9 * (1 + 4 + 9) / 3))


def test_estimating_leaves_the_policy_as_it_is() -> None:
    policy = start(RUN)
    before = {name: values.clone() for name, values in policy.state_dict().items()}
    strategy = _strategy()
    end_stage(policy, strategy, task_data(0), RUN, 0)
    assert all(torch.equal(values, before[name]) for name, values in policy.state_dict().items())
    assert all(p.grad is None for p in policy.parameters())
    assert sum(float(values.sum()) for values in strategy.state.values()) > 0
    again = _strategy()
    end_stage(policy, again, task_data(0), RUN, 0)
    assert all(torch.equal(values, again.state[name]) for name, values in strategy.state.items())


def test_the_penalty_is_zero_at_first_and_holds(tmp_path: Path) -> None:
    moved = {}
    for weight in (0.0, 1e6):
        run = dataclasses.replace(RUN, sections=(EwcConfig(weight=weight, batches=3),))
        policy, strategy = start(run), _strategy(run)
        assert "penalty" not in _learn(policy, strategy, run, 0, tmp_path / f"first_{weight:g}")[-1]
        before = {name: p.detach().clone() for name, p in policy.named_parameters()}
        terms = _learn(policy, strategy, run, 1, tmp_path / f"second_{weight:g}")
        assert terms[0]["penalty"] == 0 < terms[-1]["penalty"]
        assert terms[-1]["total"] == pytest.approx(terms[-1]["bc"] + weight * terms[-1]["penalty"], rel=1e-4)
        held = strategy.state  # of both stages; what the second added is small beside this comparison
        with torch.no_grad():
            moved[weight] = sum(
                float((held[name] * (p - before[name]).square()).sum()) for name, p in policy.named_parameters()
            )
    assert moved[1e6] < 0.5 * moved[0.0]


@pytest.mark.parametrize("setting", [{"weight": -1.0}, {"fade": -0.1}, {"batches": 0}])
def test_settings_out_of_range_are_refused(setting: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"ewc\.\w+ is"):
        EwcConfig(**setting)  # type: ignore[arg-type]
