"""The simulated environments with gymnasium's interface, for other people's policies and wrappers.

Importing this module registers one environment for each suite, such as ``m2distill/Tabletop-v0``, see :data:`IDS`.
:func:`make_env` makes one. If you do not import this module, tell gymnasium to import it::

    env = gymnasium.make("m2distill_policy.sim.gym_env:m2distill/Tabletop-v0", task=0)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from m2distill_policy.contract import Contract
from m2distill_policy.errors import SimulationError, closest
from m2distill_policy.observation import Observation
from m2distill_policy.sim.env import SimEnv, Task
from m2distill_policy.sim.seeds import DEMONSTRATIONS_FROM
from m2distill_policy.sim.suites import SUITES, make_sim_env, suite_task

#: Suite -> id of its environment in gymnasium.
IDS = {
    "tabletop": "m2distill/Tabletop-v0",
    "libero_spatial": "m2distill/LiberoSpatial-v0",
    "libero_object": "m2distill/LiberoObject-v0",
    "libero_goal": "m2distill/LiberoGoal-v0",
    "libero_10": "m2distill/Libero10-v0",
}

#: Height and width of the image that :meth:`GymEnv.render` returns, in pixels.
RENDER_SIZE = 256

GymObservation = dict[str, NDArray[Any]]


class GymEnv(gymnasium.Env[GymObservation, NDArray[Any]]):
    """One task with gymnasium's interface. It needs no policy and no robot.

    A step is one control period, 1/20 s.

    **Observation**: a dict with one image for each camera view, (H, W, 3) uint8 RGB, and one array for each group of
    proprioception, (n,) float32. The keys are the names in the contract. For the built-in suites these are
    ``agentview_rgb``, ``eye_in_hand_rgb``, ``joint_states`` (7 angles in rad) and ``gripper_states`` (2 positions in
    m). The instruction is in ``info``.

    **Action**: (7,) float32 in [-1, 1]: translation in x, y and z, rotation vector, and gripper (-1 opens, 1 closes).
    The arm's set-point moves by the action times the contract's scales, in the frame of the robot's base. Values
    outside [-1, 1] are clipped.

    **Reward**: 1.0 in a step after which the task is done, otherwise 0.0.

    **Terminated**: true in a step after which the task is done.

    **Truncated**: true when the task's horizon is reached and the task is not done.

    **Info**: ``instruction``; ``is_success`` (whether the task is done now); ``achieved`` (names of all tasks of the
    suite that were done since the reset) and ``lifted`` (names of the objects that were lifted since the reset).

    Args:
        suite: Name of the suite, see :data:`m2distill_policy.sim.suites.SUITES`.
        task: Index of the task in the suite, or a task of your own that uses the objects of this suite.
        size: Height and width of the views in pixels, 16 to 1024.
        visuals: Visual profile, ``fast`` or ``stock``.
        render_mode: ``rgb_array`` or None.

    Attributes:
        sim_env: The wrapped environment, for scripted experts and MuJoCo states.
        contract: The contract of the observations and actions. A bundle can be used if it has the same contract.

    Raises:
        SimulationError: An argument is not allowed, or the scene cannot be built.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012

    def __init__(
        self,
        suite: str = "tabletop",
        task: int | Task = 0,
        *,
        size: int = 128,
        visuals: str = "fast",
        render_mode: str | None = None,
    ) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise SimulationError(f"render_mode is '{render_mode}'; use 'rgb_array' or None")
        chosen = task if isinstance(task, Task) else suite_task(suite, task)
        if chosen.suite != suite:
            raise SimulationError(f"task '{chosen.name}' is of suite '{chosen.suite}', but suite is '{suite}'")
        self.render_mode = render_mode
        self.sim_env: SimEnv = make_sim_env(chosen, size=size, visuals=visuals)
        self.contract = self.sim_env.contract
        self.observation_space = cast("spaces.Space[GymObservation]", observation_space(self.contract))
        self.action_space = spaces.Box(-1.0, 1.0, (7,), np.float32)
        self._steps = 0
        self._is_open = True

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[GymObservation, dict[str, Any]]:
        """Start an episode.

        Args:
            seed: Seed of the initial state, 0 or more. The same seed gives the same state.
                :mod:`m2distill_policy.sim.seeds` says which seeds demonstrations and reported results use. None
                samples a seed below 1,000,000 with the random generator of the environment.
            options: ``{"state": state}`` starts from a flattened MuJoCo state instead, such as a state of a
                demonstration.

        Returns:
            The first observation, and ``info``.

        Raises:
            SimulationError: An option is unknown, or the state does not fit the scene.
        """
        super().reset(seed=seed)
        given = dict(options or {})
        state = given.pop("state", None)
        if given:
            name = min(given)
            raise SimulationError(f"there is no option '{name}'; use 'state'{closest(name, ('state',))}")
        self._steps = 0
        if state is not None:
            observation = self.sim_env.reset_to(state)
        else:
            observation = self.sim_env.reset(
                int(self.np_random.integers(DEMONSTRATIONS_FROM)) if seed is None else seed
            )
        return _to_gym(observation), self._info()

    def step(self, action: NDArray[Any]) -> tuple[GymObservation, float, bool, bool, dict[str, Any]]:
        """Run one control period. The docstring of the class describes the result.

        Raises:
            SimulationError: The action is not 7 finite numbers, or the physics becomes unstable.
        """
        observation = self.sim_env.step(action)
        self._steps += 1
        success = self.sim_env.success()
        truncated = not success and self._steps >= self.sim_env.task.horizon
        return _to_gym(observation), float(success), success, truncated, self._info()

    def render(self) -> NDArray[np.uint8] | None:
        """Return an image of the first view, (256, 256, 3) uint8 RGB, or None if there is no render mode."""
        if self.render_mode is None:
            return None
        return self.sim_env.render(self.contract.camera_names[0], RENDER_SIZE, RENDER_SIZE)

    def close(self) -> None:
        """Free the renderer. A second call does nothing."""
        if self._is_open:
            self._is_open = False
            self.sim_env.close()

    def _info(self) -> dict[str, Any]:
        env = self.sim_env
        return {
            "instruction": env.task.instruction,
            "is_success": env.success(),
            "achieved": env.achieved(),
            "lifted": env.lifted(),
        }


def observation_space(contract: Contract) -> spaces.Dict:
    """Return the space of the observations of ``contract``."""
    boxes: dict[str, spaces.Space[Any]] = {c.name: spaces.Box(0, 255, c.shape, np.uint8) for c in contract.cameras}
    for group in contract.proprioception:
        boxes[group.name] = spaces.Box(group.low, group.high, (group.size,), np.float32)
    return spaces.Dict(boxes)


def make_env(
    suite: str = "tabletop",
    task: int | Task = 0,
    *,
    size: int = 128,
    visuals: str = "fast",
    render_mode: str | None = None,
) -> gymnasium.Env[GymObservation, NDArray[Any]]:
    """Make an environment with gymnasium's interface. Close it at the end.

    It is made by ``gymnasium.make``, so it has a ``spec`` and gymnasium's usual checks. Example::

        env = make_env("tabletop", task=0)
        observation, info = env.reset(seed=1)
        observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
        env.close()

    Args:
        suite: Name of the suite, see :data:`m2distill_policy.sim.suites.SUITES`.
        task: Index of the task in the suite, or a task of your own that uses the objects of this suite.
        size: Height and width of the views in pixels, 16 to 1024.
        visuals: Visual profile, ``fast`` or ``stock``.
        render_mode: ``rgb_array`` or None.

    Returns:
        The environment, see :class:`GymEnv` for its observations, actions and rewards.

    Raises:
        SimulationError: An argument is not allowed, or the scene cannot be built.
    """
    if suite not in IDS:
        raise SimulationError(f"there is no suite '{suite}'; choose one of {', '.join(IDS)}{closest(suite, IDS)}")
    return gymnasium.make(IDS[suite], task=task, size=size, visuals=visuals, render_mode=render_mode)


def register() -> None:
    """Register the environment of each suite with gymnasium. A second call does nothing."""
    for suite in SUITES:
        if IDS[suite] not in gymnasium.registry:
            gymnasium.register(IDS[suite], f"{__name__}:GymEnv", kwargs={"suite": suite})


def _to_gym(observation: Observation) -> GymObservation:
    return {**observation.images, **observation.proprioception}


register()
