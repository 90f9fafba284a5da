"""The lean controller moves the arm as robosuite's own OSC_POSE does, step by step."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("robosuite", reason="the simulator is not installed (requirements/sim.txt)")

from m2distill_policy.contract import libero_contract
from m2distill_policy.sim.arm_env import ArmEnv
from m2distill_policy.sim.env import Task
from m2distill_policy.sim.osc import rotation_from_vector, vector_from_rotation
from m2distill_policy.sim.rendering import Renderer
from m2distill_policy.sim.visuals import visual_profile


def test_same_trajectory_as_robosuite() -> None:
    import mujoco
    import robosuite

    np.random.seed(3)  # noqa: NPY002 - robosuite draws from the global generator
    robosuite_env = robosuite.make(
        "Lift",
        robots="Panda",
        controller_configs=robosuite.load_controller_config(default_controller="OSC_POSE"),
        has_renderer=False,
        has_offscreen_renderer=False,
        use_camera_obs=False,
        control_freq=20,
    )
    robosuite_env.reset()
    model = robosuite_env.sim.model._model
    renderer = Renderer(model, visual_profile("stock"))
    env = ArmEnv(Task("lift", 0, "lift", "lift", 100), libero_contract(64), model, mujoco.MjData(model), renderer, "")
    start = robosuite_env.sim.get_state().flatten()
    env._restore(start, np.array(robosuite_env.robots[0].controller.initial_joint), np.zeros(2))
    # The warm start of MuJoCo's solver is part of where robosuite is.
    env.data.qacc_warmstart[:] = robosuite_env.sim.data._data.qacc_warmstart
    rng = np.random.default_rng(0)
    largest = 0.0
    for step in range(60):
        action = np.clip(rng.normal(0.0, 0.5, 7), -1, 1)
        if step % 3 == 0:
            action[3:6] = 0.0  # robosuite then keeps its last orientation goal
        action[6] = 1.0 if step > 30 else -1.0
        robosuite_env.step(action)
        env.advance(action)
        largest = max(largest, float(np.max(np.abs(env.data.qpos - robosuite_env.sim.data.qpos))))
    robosuite_env.close()
    assert largest < 1e-6


@pytest.mark.parametrize(
    "vector", [(0.0, 0.0, 0.0), (0.3, -0.2, 0.1), (np.pi, 0.0, 0.0), (0.0, -3.1, 0.2), (1e-9, 0.0, 0.0)]
)
def test_rotation_vectors_survive_the_round_trip(vector: tuple[float, float, float]) -> None:
    rotation = rotation_from_vector(np.array(vector))
    assert np.allclose(rotation @ rotation.T, np.eye(3))
    assert np.allclose(rotation_from_vector(vector_from_rotation(rotation)), rotation, atol=1e-7)
