"""A stage cut off anywhere ends with the weights of one that was not; a teacher stays frozen."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from m2distill_policy.config import from_dict, to_dict
from m2distill_policy.errors import TrainingError
from tests.training_fixtures import CONTRACT, config, task_data
from training.lifelong.checkpoint import load_tensors, read_json, save_tensors
from training.lifelong.memory import Memory
from training.lifelong.stage import learning_rate, to_inputs, train_stage
from training.lifelong.strategies import make_strategy
from training.lifelong.strategies.m2distill import DistillConfig, M2Distill
from training.models.image_encoder import ImageEncoder
from training.models.resnet_t import ResNetT
from training.run_config import RunConfig


class Killed(Exception):
    """Stands for kill -9: nothing after it runs."""


def start(run: RunConfig) -> ResNetT:
    torch.manual_seed(run.seed)
    return ResNetT(run.network, CONTRACT)


def memory_of_one(run: RunConfig) -> Memory:
    memory = Memory(run.memory)
    memory.add(task_data(7), np.random.default_rng(0))
    return memory


def train(run: RunConfig, folder: Path, stage: int, kill_at: int | None = None) -> ResNetT:
    policy = start(run)
    strategy = make_strategy(run, memory_of_one(run), CONTRACT.history)

    def listener(step: int, steps: int, terms: dict[str, float]) -> None:
        if step == kill_at:
            raise Killed

    train_stage(policy, strategy, task_data(0), run, stage, folder, listener, lambda candidate: None)
    return policy


@pytest.mark.parametrize("strategy", ["sequential", "er", "ewc", "packnet", "m2distill"])
@pytest.mark.parametrize("kill_at", [1, 7])
def test_killed_and_resumed_ends_with_the_same_weights(tmp_path: Path, strategy: str, kill_at: int) -> None:
    run = config(strategy=strategy)
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    whole = train(run, tmp_path / "whole", stage=1)
    with pytest.raises(Killed):
        train(run, tmp_path / "cut", stage=1, kill_at=kill_at)
    if kill_at > 1:
        assert read_json(tmp_path / "cut" / "partial.json")["step"] == kill_at - 1
    resumed = train(run, tmp_path / "cut", stage=1)
    for (name, a), (_, b) in zip(whole.state_dict().items(), resumed.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def test_teacher_is_frozen_and_let_go() -> None:
    run = config()
    strategy = M2Distill(memory_of_one(run), CONTRACT.history, run.section(DistillConfig))
    policy = start(run)
    strategy.begin_stage(policy, 0)
    assert strategy.teacher is None
    strategy.begin_stage(policy, 1)
    teacher = strategy.teacher
    assert teacher is not None and not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(1.0)
    assert not torch.equal(next(policy.parameters()), next(teacher.parameters()))
    strategy.end_stage(policy, lambda number: torch.zeros(()))
    assert strategy.teacher is None


def test_batch_norm_statistics_stay_when_frozen(tmp_path: Path) -> None:
    modes: tuple[tuple[Literal["train", "frozen_after_first"], bool], ...] = (
        ("train", True),
        ("frozen_after_first", False),
    )
    for mode, moved in modes:
        run = config(network=dataclasses.replace(config().network, batch_norm=mode), strategy="sequential")
        before = {k: v.clone() for k, v in start(run).state_dict().items() if "running_mean" in k}
        (tmp_path / mode).mkdir()
        after = train(run, tmp_path / mode, stage=1).state_dict()
        assert any(not torch.equal(after[k], v) for k, v in before.items()) is moved


@pytest.mark.parametrize("batch_norm", ["train", "frozen_after_first"])
def test_what_is_recomputed_changes_no_weight(
    tmp_path: Path, batch_norm: Literal["train", "frozen_after_first"]
) -> None:
    """Statistics of the batch norms included: they follow a batch once, however often it is computed."""
    plain = config(network=dataclasses.replace(config().network, batch_norm=batch_norm))
    frugal = dataclasses.replace(plain, optim=dataclasses.replace(plain.optim, recompute=True))
    for stage in (0, 1):
        weights = []
        for name, run in (("plain", plain), ("frugal", frugal)):
            folder = tmp_path / f"{name}_{stage}"
            folder.mkdir()
            weights.append(train(run, folder, stage).state_dict())
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_feature_maps_are_kept_while_they_fit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is estimated is what autograd keeps, and half of what is free decides, or the most that a CPU is given."""
    from training.lifelong import stage

    run = config(strategy="sequential", optim=dataclasses.replace(config().optim, precision="fp32"))
    policy = start(run)
    pixels = policy.contract.cameras[0].height ** 2
    size = policy.feature_bytes()
    assert 4 * 2 * 3 * pixels < size < 4 * 2 * 200 * pixels  # more than the pictures, and no weights
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert policy.feature_bytes() < 0.8 * size, "in bf16 the maps take less"
    needed = run.optim.batch * policy.contract.history * size
    most = stage._FEATURE_MOST
    for free, ceiling, again in (
        (2 * needed + 2, most, False), (2 * needed - 2, most, True), (None, most, False), (None, needed - 1, True)
    ):  # fmt: skip
        monkeypatch.setattr(stage, "free_bytes", lambda device, free=free: free)
        monkeypatch.setattr(stage, "_FEATURE_MOST", ceiling)
        policy = train(run, tmp_path, stage=0)
        assert all(view.recompute is again for view in policy.views if isinstance(view, ImageEncoder))


def test_one_process_that_is_short_of_memory_decides_for_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Else one would exchange statistics again on the way back and wait for ever for the others."""
    from training.lifelong import stage

    asked: list[float] = []

    def average(values: torch.Tensor) -> torch.Tensor:
        if values.dim():  # the terms
            return values
        asked.append(float(values))
        return (values + 1.0) / 2  # another process is short

    monkeypatch.setattr(stage.distributed, "average", average)
    monkeypatch.setattr(stage, "free_bytes", lambda device: 2**50)
    policy = train(config(strategy="sequential"), tmp_path, stage=0)
    assert asked[0] == 0.0 and all(view.recompute for view in policy.views if isinstance(view, ImageEncoder))


def test_free_memory_counts_a_container(tmp_path: Path) -> None:
    from training.allocator import free_bytes

    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:  4000 kB\n")
    cpu, group = torch.device("cpu"), tmp_path / "sys/fs/cgroup"
    assert free_bytes(cpu, tmp_path) == 4000 * 1024
    group.mkdir(parents=True)
    (group / "memory.current").write_text("1000\n")
    for limit, free in (("max\n", 4000 * 1024), ("31000\n", 30000)):
        free_bytes.cache_clear()
        (group / "memory.max").write_text(limit)
        assert free_bytes(cpu, tmp_path) == free
    assert free_bytes(cpu, tmp_path / "nowhere") is None


def test_text_layers_learn_at_their_own_rate(tmp_path: Path) -> None:
    run = config(strategy="sequential", optim=dataclasses.replace(config().optim, text_lr_factor=1e-6))
    before = start(run)
    after = train(run, tmp_path, stage=0)
    text = {id(p) for p in after.text_parameters()}
    for (name, a), b in zip(after.named_parameters(), before.parameters(), strict=True):
        moved = float((a - b).detach().abs().max())
        if id(a) in text:
            assert moved < 1e-7, name
        elif name.endswith("weight"):  # a softmax does not see its own bias
            assert moved > 1e-4, name


def test_every_distillation_term_is_logged_and_each_switch_works(tmp_path: Path) -> None:
    seen: dict[str, float] = {}
    run = config()
    policy = start(run)
    strategy = make_strategy(run, memory_of_one(run), CONTRACT.history)
    train_stage(policy, strategy, task_data(0), run, 1, tmp_path, lambda s, n, t: seen.update(t), lambda p: None)
    for name in ("image", "text", "extra", "policy"):
        for place in ("new", "memory", "old_instructions"):
            assert f"{name}/{place}" in seen
    for name in ("image", "text", "extra", "policy"):
        off = config(
            sections=(
                from_dict(DistillConfig, {**to_dict(run.section(DistillConfig)), name: {"weight": 1.0, "on": False}}),
            )
        )
        seen.clear()
        (tmp_path / name).mkdir()
        strategy = make_strategy(off, memory_of_one(off), CONTRACT.history)
        train_stage(
            start(off), strategy, task_data(0), off, 1, tmp_path / name, lambda s, n, t: seen.update(t), lambda p: None
        )
        assert not any(key.startswith(f"{name}/") for key in seen)


def test_a_saved_policy_is_loaded_bit_by_bit(tmp_path: Path) -> None:
    policy = train(config(), tmp_path, stage=0)
    digest = save_tensors(tmp_path / "policy.safetensors", policy.state_dict())
    other = ResNetT(config().network, CONTRACT)
    other.load_state_dict(load_tensors(tmp_path / "policy.safetensors", digest))
    saved, loaded = policy.state_dict(), other.state_dict()
    assert saved.keys() == loaded.keys() and all(torch.equal(saved[name], loaded[name]) for name in saved)
    inputs = to_inputs(task_data(0).windows(np.random.default_rng(0), 4, 10), torch.device("cpu"))
    with torch.no_grad():
        a, b = policy.eval()(inputs), other.eval()(inputs)
    assert torch.equal(a.tokens, b.tokens) and torch.equal(a.mixture.means, b.mixture.means)


def test_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    digest = save_tensors(tmp_path / "a.safetensors", {"x": torch.ones(3)})
    assert torch.equal(load_tensors(tmp_path / "a.safetensors", digest)["x"], torch.ones(3))
    data = bytearray((tmp_path / "a.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "a.safetensors").write_bytes(bytes(data))
    with pytest.raises(TrainingError, match="damaged"):
        load_tensors(tmp_path / "a.safetensors", digest)
    with pytest.raises(TrainingError, match="missing"):
        load_tensors(tmp_path / "b.safetensors", digest)


def test_learning_rate_warms_up_and_ends_at_the_lowest() -> None:
    rates = [learning_rate(s, 100, 1e-3, 1e-5, 10) for s in range(100)]
    assert rates[0] == pytest.approx(1e-4)
    assert max(rates) == pytest.approx(1e-3)
    assert rates[-1] == pytest.approx(1e-5)


_FREED = """
import torch
from training.allocator import keep_freed_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20

keep_freed_memory()
before = resident()
maps = [torch.ones(2**20) for _ in range(100)]  # 4 MiB each
del maps
print(resident() - before)
keep_freed_memory(False)
print(resident() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from Linux's /proc")
def test_freed_memory_is_kept_and_given_back() -> None:
    """A stage of large batches, which computes maps again, must not stand on what one of small batches has kept."""
    output = subprocess.run([sys.executable, "-c", _FREED], capture_output=True, text=True, check=True).stdout
    kept, left = map(float, output.split())
    assert kept > 300 and left < 100, output
