"""Record one demonstration: simulate an episode of an expert, then render its views."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from m2distill_policy.demonstrations import Episode, Recording
from m2distill_policy.observation import Observation
from m2distill_policy.sim.arm_env import ArmEnv
from m2distill_policy.sim.disturbances import Disturbance, DisturbedEnv
from m2distill_policy.sim.experts.episode import run_expert
from m2distill_policy.sim.experts.noise import Noise
from m2distill_policy.sim.suites import make_expert


def record_episode(env: ArmEnv, seed: int, *, noise: float = 1.0, randomise: Sequence[str] = ()) -> Recording | None:
    """Record one episode in which the expert does the task of the environment.

    The episode is simulated first and rendered afterwards, so a failed episode is not rendered. Both the actions of the
    expert and the executed actions are stored.

    Args:
        env: The environment.
        seed: Seed of the initial state, the noise and the disturbances.
        noise: Factor on the standard noise of the executed actions; 0 for no noise.
        randomise: Kinds of disturbance. The level of each, from 0 to 1, is sampled from ``seed``.

    Returns:
        The episode, or None if the expert failed.
    """
    rng = np.random.default_rng([78, seed])
    disturbed = DisturbedEnv(env, [Disturbance(kind, float(rng.random())) for kind in randomise])
    disturbed.start_episode(seed)
    try:
        run = run_expert(
            env,
            seed,
            make_expert,
            noise=Noise().scaled(noise) if noise > 0 else None,
            disturb_action=disturbed.disturb_action if randomise else None,
        )
        if not run.success:
            return None
        observations = []
        for index, state in enumerate(run.states):
            proprioception = {name: values[index] for name, values in run.proprioception.items()}
            observation = Observation(env.views(state), proprioception, index * env.contract.period)
            observations.append(disturbed.disturb_observation(observation))
    finally:
        disturbed.restore()
    episode = Episode(
        images={name: np.stack([o.images[name] for o in observations]) for name in env.contract.camera_names},
        proprioception={name: np.stack([o.proprioception[name] for o in observations]) for name in run.proprioception},
        actions=run.actions.astype(np.float32),
        ee=run.ee.astype(np.float32),
        seed=seed,
        init_state=run.states[0],
        executed=run.executed.astype(np.float32),
    )
    return Recording(episode, run.states, run.robot_states, env.model_xml())
