"""Small real parts for the learning tests: a contract, a task's data with a visible pattern, a configuration."""

from __future__ import annotations

import numpy as np

from m2distill_policy.contract import Text, libero_contract
from training.data.augment import AugmentConfig
from training.data.task_data import TaskData
from training.lifelong.memory import MemoryConfig
from training.models.config import NetworkConfig
from training.run_config import EvaluationConfig, OptimConfig, RunConfig

TEXT_SIZE = 12
CONTRACT = libero_contract(32, Text("test", "0", "mean", 1.0, TEXT_SIZE))
NETWORK = NetworkConfig(
    stem_kernel=5,
    stem_stride=4,
    stem_pool=False,
    channels=(8, 8),
    keypoints=4,
    embed=16,
    layers=1,
    heads=2,
    head_size=8,
    mlp=16,
    head_hidden=16,
    modes=3,
    min_std=0.03,
)


def config(**changes: object) -> RunConfig:
    """A run small enough for a test."""
    base: dict[str, object] = {
        "image_size": 32,
        "tasks": (0, 1),
        "episodes": 3,
        "network": NETWORK,
        "augment": AugmentConfig(0.2, 0.2, 0.2, 0.02, 0.1, 4),
        "optim": OptimConfig(steps=12, batch=3, lr=1e-3, lr_end=1e-5, threads=1, checkpoint_seconds=0.0),
        "memory": MemoryConfig(episodes=1, replay_batch=2, instructions=True, instruction_batch=2),
        "evaluation": EvaluationConfig(rollouts=0),
    }
    return RunConfig(**{**base, **changes})  # type: ignore[arg-type]


def task_data(seed: int, lengths: tuple[int, ...] = (18, 21, 25)) -> TaskData:
    """Episodes whose every frame, reading and action holds its own global index where it fits."""
    rng = np.random.default_rng(seed)
    steps = sum(lengths)
    return TaskData(
        name=f"task_{seed}",
        instruction=f"do thing {seed}",
        images={c.name: rng.integers(0, 256, (steps, *c.shape), dtype=np.uint8) for c in CONTRACT.cameras},
        proprioception={g.name: rng.normal(size=(steps, g.size)).astype(np.float32) for g in CONTRACT.proprioception},
        actions=rng.uniform(-1, 1, (steps, 7)).astype(np.float32),
        lengths=np.array(lengths, dtype=np.int64),
        embedding=rng.normal(size=TEXT_SIZE).astype(np.float32),
    )
