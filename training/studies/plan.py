"""Estimate how long a run takes on this machine, from its configuration and a few timed steps."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from m2distill_policy.bundle import open_bundle
from m2distill_policy.contract import Contract, Text
from m2distill_policy.demonstrations import DemonstrationFile, demonstration_path
from m2distill_policy.errors import TrainingError
from m2distill_policy.runtime.server import PolicyServer
from m2distill_policy.runtime.watchdog import WatchLimits
from m2distill_policy.sim.env import Task
from m2distill_policy.sim.suites import make_sim_env, suite_contract
from training.data.task_data import TaskData
from training.export import export_bundle
from training.lifelong.memory import Memory
from training.lifelong.stage import end_stage, train_stage
from training.lifelong.strategies import make_strategy
from training.models.resnet_t import ResNetT
from training.run_config import RunConfig

_INSTRUCTION = "noise"
#: Number of timed steps of training and of an environment. The same number of warm-up steps comes before them.
_TIMED_TRAINING, _TIMED_CONTROL = 4, 20


@dataclass(frozen=True)
class Work:
    """The work of a run.

    Attributes:
        steps: Number of optimiser steps of every stage.
        rollouts: Purpose -> number of rollouts.
        control_steps: Largest number of control steps of all rollouts together.
    """

    steps: tuple[int, ...]
    rollouts: dict[str, int]
    control_steps: int


@dataclass(frozen=True)
class Speed:
    """The measured seconds per step.

    Attributes:
        first_step: Seconds of an optimiser step in the first stage.
        later_step: Seconds of an optimiser step in a later stage.
        control_step: Seconds of a control step in one worker process.
    """

    first_step: float
    later_step: float
    control_step: float


def demonstrated_steps(config: RunConfig, tasks: Sequence[Task], data: Path | None, length: int) -> list[int]:
    """Return the number of demonstrated steps of each task.

    Args:
        config: Settings of the run.
        tasks: Tasks of the run.
        data: Folder of the demonstrations; None: assume that every episode has ``length`` steps.
        length: Assumed number of steps of an episode.

    Raises:
        TrainingError: A file has fewer episodes than the configuration asks for.
    """
    if data is None:
        return [config.episodes_of(i) * length for i in range(len(tasks))]
    found = []
    for i, task in enumerate(tasks):
        file, wanted = DemonstrationFile(demonstration_path(data, task.name)), config.episodes_of(i)
        if len(file) < wanted:
            raise TrainingError(
                f"{file.path} has {len(file)} episodes and the configuration asks for {wanted}; collect more, or set "
                f"episodes={len(file)}"
            )
        found.append(sum(file.lengths()[:wanted]))
    return found


def count(config: RunConfig, tasks: Sequence[Task], demonstrated: Sequence[int], history: int) -> Work:
    """Count the optimiser steps, rollouts and control steps that ``config`` asks for.

    Args:
        config: Settings of the run.
        tasks: Tasks of the run.
        demonstrated: Number of demonstrated steps of each task.
        history: Number of steps in a window.
    """
    horizons = [min(config.evaluation.horizon or task.horizon, task.horizon) for task in tasks]
    number, evaluation = len(tasks), config.evaluation
    # The new tasks of each stage, and all tasks that are evaluated after it.
    new = [config.new_tasks(stage) for stage in range(config.stages)]
    known = [range(config.learned(stage)) for stage in range(config.stages)]
    steps = tuple(
        config.optim.stage_steps(stage, sum(demonstrated[i] for i in part), history, len(part))
        for stage, part in enumerate(new)
    )
    candidates = evaluation.candidates if evaluation.candidates > 1 else 0
    measured = {
        "selection": [i for part in new for i in part] * candidates,
        # One at the start of a stage, and one for each checkpoint candidate before the chosen one. This is an upper
        # limit, because the chosen candidate may come before the last.
        "candidates": [i for part in new for i in part] * candidates,
        "reported": [i for part in known for i in part],
    }
    rollouts = {name: len(cells) * evaluation.rollouts for name, cells in measured.items()}
    control = evaluation.rollouts * sum(horizons[i] for cells in measured.values() for i in cells)
    if evaluation.rollouts:
        rollouts["cross-instruction"] = number * (number - 1) * evaluation.cross_instruction
        control += evaluation.cross_instruction * (number - 1) * sum(horizons)
    return Work(steps, {name: value for name, value in rollouts.items() if value}, control)


def noise(contract: Contract, seed: int, episodes: int = 10, episode: int = 60) -> TaskData:
    """Make ``episodes`` demonstrations of ``episode`` steps each, filled with noise.

    Noise is enough, because the time of a convolution does not depend on its input.
    """
    steps = episodes * episode
    rng = np.random.default_rng(seed)
    assert contract.text is not None
    return TaskData(
        name=_INSTRUCTION,
        instruction=_INSTRUCTION,
        images={c.name: rng.integers(0, 256, (steps, *c.shape), dtype=np.uint8) for c in contract.cameras},
        proprioception={g.name: rng.normal(size=(steps, g.size)).astype(np.float32) for g in contract.proprioception},
        actions=rng.uniform(-1, 1, (steps, 7)).astype(np.float32),
        lengths=np.full(episodes, episode, dtype=np.int64),
        embedding=rng.normal(size=contract.text.size).astype(np.float32),
    )


def measure(config: RunConfig, task: Task, say: Callable[[str], None]) -> Speed:
    """Time a few steps with the network, batch and environment that ``config`` asks for. It takes a minute."""
    text = Text(_INSTRUCTION, "0", "none", 1.0, 768 if "bert" in config.text_encoder else 384)
    contract = dataclasses.replace(suite_contract(config.suite, config.image_size), text=text)
    say("timing training")
    first = _step_seconds(config, contract, 0)
    later = _step_seconds(config, contract, 1) if config.stages > 1 else first
    if not config.evaluation.rollouts:
        return Speed(first, later, 0.0)
    say("timing a rollout")
    return Speed(first, later, _control_seconds(config, contract, task))


def _step_seconds(config: RunConfig, contract: Contract, stage: int) -> float:
    """Return the median seconds of a training step, in stage 0 or in a later stage."""
    steps = 2 * _TIMED_TRAINING
    chosen = config.strategy_class
    optim = dataclasses.replace(
        config.optim, steps=steps, epochs=0.0, first_epochs=0.0, warmup=0, checkpoint_seconds=1e9
    )
    timed = dataclasses.replace(
        config,
        optim=optim,
        evaluation=dataclasses.replace(config.evaluation, candidates=1),
        sections=tuple(chosen.quick(own) if type(own) is chosen.config_class else own for own in config.sections),
    )
    memory = Memory(timed.memory)
    policy, strategy = ResNetT(timed.network, contract), make_strategy(timed, memory, contract.history)
    if stage:
        memory.add(noise(contract, 1, max(1, timed.memory.episodes)), np.random.default_rng(0))
        end_stage(policy, strategy, noise(contract, 1), timed, 0)
    stamps: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        train_stage(
            policy, strategy, noise(contract, 0), timed, stage, Path(folder),
            lambda step, steps, terms: stamps.append(time.perf_counter()), lambda candidate: None,
        )  # fmt: skip
    return float(np.median(np.diff(stamps)[-_TIMED_TRAINING:]))


def _control_seconds(config: RunConfig, contract: Contract, task: Task) -> float:
    """Return the mean seconds of a control step: simulation, rendering, and the exported network."""
    env = make_sim_env(task, size=config.image_size, visuals=config.evaluation.visuals)
    try:
        data = noise(contract, 0)
        with tempfile.TemporaryDirectory() as folder:
            bundle = Path(folder) / "bundle"
            export_bundle(
                ResNetT(config.network, contract).eval(),
                bundle,
                tasks=[{"name": _INSTRUCTION, "instruction": _INSTRUCTION}],
                embeddings=data.embedding[None],
                check_on=[data],
                provenance={},
            )
            server = PolicyServer(open_bundle(bundle), sampling="mode", watch=WatchLimits.lockstep())
            server.set_instruction(_INSTRUCTION)
            observation = env.reset(0)
            begin = 0.0
            for step in range(2 * _TIMED_CONTROL):
                if step == _TIMED_CONTROL:
                    begin = time.perf_counter()
                decision = server.step(observation, observation.stamp)
                observation = env.step(decision.action)
            return (time.perf_counter() - begin) / _TIMED_CONTROL
    finally:
        env.close()


def table(config: RunConfig, work: Work, speed: Speed, seeds: int) -> str:
    """Make a table for a terminal, with the estimated hours."""
    training = work.steps[0] * speed.first_step + sum(work.steps[1:]) * speed.later_step
    rollouts = work.control_steps * speed.control_step / config.evaluation.workers
    lines = [
        f"{config.strategy}, {len(config.tasks)} tasks of {config.suite}, {len(work.steps)} stages",
        f"training   {sum(work.steps):>9} steps           {speed.first_step * 1e3:8.0f} ms a step in the first stage, "
        f"{speed.later_step * 1e3:.0f} later   {training / 3600:8.2f} h",
    ]
    if work.control_steps:
        kinds = ", ".join(f"{value} {name}" for name, value in work.rollouts.items())
        lines += [
            f"rollouts   {sum(work.rollouts.values()):>9} ({kinds})",
            f"           {work.control_steps:>9} control steps at most   {speed.control_step * 1e3:.0f} ms each, "
            f"{config.evaluation.workers} workers   {rollouts / 3600:.2f} h at most",
        ]
    total = training + rollouts
    lines.append(f"one run: at most {total / 3600:.1f} h; {seeds} seeds: at most {seeds * total / 3600:.1f} h")
    return "\n".join(lines)
