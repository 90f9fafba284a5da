"""Disturb an environment in ways in which a real robot differs from the simulation.

Each kind of disturbance has a level from 0 to 1. :data:`KINDS` says what level 1 does. The direction of a disturbance
depends only on the seed of the episode. So two levels disturb the same episode in the same direction.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.errors import SimulationError, closest
from m2distill_policy.observation import Observation
from m2distill_policy.sim.env import SimEnv

#: Kind of disturbance -> what it does at level 1.
KINDS: dict[str, str] = {
    "camera": "the fixed camera moves by 3 cm and 4 degrees, the hand camera by 1 cm and 2 degrees; "
    "fields of view change by 5 %",
    "light": "the light is 0.5 or 1.5 times as bright and comes from another direction",
    "texture": "table, floor and walls change colour: each channel is multiplied by 0.4 to 1",
    "delay": "actions arrive 3 control periods late",
    "gain": "the arm moves 0.6 or 1.4 times as far as commanded",
    "noise": "noise with a standard deviation of 20 of 255 on pixels, 0.02 rad on joints and 0.002 m on fingers",
}
_NAMES = tuple(KINDS)
_CAMERA_MOVE = {"agentview": (0.03, np.radians(4.0)), "robot0_eye_in_hand": (0.01, np.radians(2.0))}
_FIELD_OF_VIEW, _LIGHT, _TEXTURE, _DELAY, _GAIN = 0.05, 0.5, 0.6, 3, 0.4
_PIXELS, _JOINTS, _FINGERS = 20.0, 0.02, 0.002


@dataclass(frozen=True)
class Disturbance:
    """One disturbance.

    Attributes:
        kind: One of :data:`KINDS`.
        level: Strength, from 0 (no disturbance) to 1.

    Raises:
        SimulationError: The kind is unknown, or the level is out of range.
    """

    kind: str
    level: float

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise SimulationError(
                f"there is no disturbance '{self.kind}'; choose one of {', '.join(KINDS)}{closest(self.kind, KINDS)}"
            )
        if not 0.0 <= self.level <= 1.0:
            raise SimulationError(f"the level of disturbance '{self.kind}' is {self.level}; allowed are 0 to 1")

    def __str__(self) -> str:
        return f"{self.kind} {self.level:g}"


class DisturbedEnv:
    """An environment (see :class:`m2distill_policy.sim.env.SimEnv`) with disturbances.

    Some disturbances change the MuJoCo model that the environment renders. Call :meth:`restore` at the end.

    Args:
        env: The environment.
        disturbances: The disturbances.

    Raises:
        SimulationError: The environment has no model that can be changed.
    """

    def __init__(self, env: SimEnv, disturbances: Sequence[Disturbance]) -> None:
        model = getattr(env, "render_model", None)
        if model is None:
            raise SimulationError(
                f"the environment of '{env.task.name}' has no attribute 'render_model', so it cannot be disturbed"
            )
        self.task, self.contract = env.task, env.contract
        self._env = env
        self._levels = {d.kind: d.level for d in disturbances}
        self._model = model
        changed = ("cam_pos", "cam_quat", "cam_fovy", "light_diffuse", "light_ambient", "light_dir", "mat_rgba")
        self._originals = {name: getattr(model, name).copy() for name in (*changed, "geom_rgba")}
        headlight = model.vis.headlight
        self._headlight = {name: np.array(getattr(headlight, name)) for name in ("ambient", "diffuse")}
        self._noise: np.random.Generator | None = None
        self._pending: deque[NDArray[np.float64]] = deque()
        self._delay_steps = 0
        self._gain = 1.0

    # ---- disturbances -----------------------------------------------------------------------------------------------

    def restore(self) -> None:
        """Undo every change of the rendered model."""
        for name, values in self._originals.items():
            getattr(self._model, name)[:] = values
        for name, values in self._headlight.items():
            getattr(self._model.vis.headlight, name)[:] = values

    def start_episode(self, seed: int) -> None:
        """Sample the directions of the disturbances from ``seed`` alone. :meth:`reset` calls this."""
        self.restore()
        self._delay_steps, self._gain, self._noise = 0, 1.0, None
        for kind, level in self._levels.items():
            rng = np.random.default_rng([seed, _NAMES.index(kind)])
            getattr(self, f"_start_{kind}")(level, rng)
        self._pending = deque([_no_motion()] * self._delay_steps)

    def _start_camera(self, level: float, rng: np.random.Generator) -> None:
        import mujoco

        from m2distill_policy.sim.osc import rotation_from_vector

        for name, (distance, angle) in _CAMERA_MOVE.items():
            index = mujoco.mj_name2id(self._model, mujoco.mjtObj.mjOBJ_CAMERA, name)
            direction, axis, zoom = _direction(rng), _direction(rng), rng.choice([-1.0, 1.0])
            if index < 0:
                continue
            self._model.cam_pos[index] += level * distance * direction
            turned, quaternion = np.zeros(4), np.zeros(4)
            mujoco.mju_mat2Quat(quaternion, rotation_from_vector(level * angle * axis).ravel())
            mujoco.mju_mulQuat(turned, quaternion, self._model.cam_quat[index])
            self._model.cam_quat[index] = turned
            self._model.cam_fovy[index] *= 1 + level * _FIELD_OF_VIEW * zoom

    def _start_light(self, level: float, rng: np.random.Generator) -> None:
        factor = 1 + level * _LIGHT * rng.choice([-1.0, 1.0])
        headlight = self._model.vis.headlight
        for values in (self._model.light_diffuse, self._model.light_ambient, headlight.ambient, headlight.diffuse):
            values[:] = np.clip(np.asarray(values) * factor, 0.0, 1.0)
        for direction in self._model.light_dir:
            moved = direction + level * 0.5 * _direction(rng)
            direction[:] = moved / np.linalg.norm(moved)

    def _start_texture(self, level: float, rng: np.random.Generator) -> None:
        fixed = self._model.body_weldid[self._model.geom_bodyid] == 0
        materials = {int(m) for m in self._model.geom_matid[fixed] if m >= 0}
        for index in sorted(materials):
            self._model.mat_rgba[index, :3] *= 1 - level * _TEXTURE * rng.random(3)
        for index in np.flatnonzero(fixed & (self._model.geom_matid < 0)):
            self._model.geom_rgba[index, :3] *= 1 - level * _TEXTURE * rng.random(3)

    def _start_delay(self, level: float, rng: np.random.Generator) -> None:
        self._delay_steps = round(level * _DELAY)

    def _start_gain(self, level: float, rng: np.random.Generator) -> None:
        self._gain = 1 + level * _GAIN * float(rng.choice([-1.0, 1.0]))

    def _start_noise(self, level: float, rng: np.random.Generator) -> None:
        self._noise = rng

    # ---- environment ------------------------------------------------------------------------------------------------

    def reset(self, seed: int) -> Observation:
        """Reset as :meth:`SimEnv.reset` does, and sample the directions of the disturbances from ``seed``."""
        self.start_episode(seed)
        return self.disturb_observation(self._env.reset(seed))

    def step(self, action: NDArray[np.floating[Any]]) -> Observation:
        """Run one step as :meth:`SimEnv.step` does, with the disturbances."""
        return self.disturb_observation(self._env.step(self.disturb_action(action)))

    def disturb_action(self, action: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Return the action (7,) that reaches the arm when ``action`` (7,) is sent in this control period."""
        self._pending.append(np.array(action, dtype=np.float64))
        executed = self._pending.popleft()
        executed[:6] = np.clip(executed[:6] * self._gain, -1.0, 1.0)
        return executed

    def disturb_observation(self, observation: Observation) -> Observation:
        """Return the observation with noise, if that disturbance is on."""
        level, rng = self._levels.get("noise", 0.0), self._noise
        if rng is None or not level:
            return observation
        images = {
            name: np.clip(frame + rng.normal(0.0, level * _PIXELS, frame.shape), 0, 255).astype(np.uint8)
            for name, frame in observation.images.items()
        }
        spread = {"rad": _JOINTS, "m": _FINGERS}
        proprioception = {}
        for group in self.contract.proprioception:
            values = observation.proprioception[group.name]
            moved = values + rng.normal(0.0, level * spread.get(group.unit, 0.0), values.shape)
            proprioception[group.name] = np.clip(moved, group.low, group.high).astype(np.float32)
        return Observation(images, proprioception, observation.stamp)

    def success(self) -> bool:
        """Return whether the task is done now."""
        return self._env.success()

    def achieved(self) -> tuple[str, ...]:
        """Return the names of the tasks that were done since the reset, see :meth:`SimEnv.achieved`."""
        return self._env.achieved()

    def lifted(self) -> tuple[str, ...]:
        """Return the names of the objects that were lifted since the reset, see :meth:`SimEnv.lifted`."""
        return self._env.lifted()

    def render(self, camera: str, height: int, width: int) -> NDArray[np.uint8]:
        """Return an upright RGB image (height, width, 3), see :meth:`SimEnv.render`."""
        return self._env.render(camera, height, width)


def _direction(rng: np.random.Generator) -> NDArray[np.float64]:
    """Return a unit vector (3,) of uniform random direction."""
    vector = rng.normal(size=3)
    return np.asarray(vector / np.linalg.norm(vector), dtype=np.float64)


def _no_motion() -> NDArray[np.float64]:
    """Return the action that is executed until the first delayed action arrives: no motion, gripper open."""
    return np.array([0.0] * 6 + [-1.0])
