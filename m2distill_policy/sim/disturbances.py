"""What differs between a simulation and an arm: a world made a little wrong, in one way or several.

Each kind has a level from 0 to 1; what 1 means is in :data:`KINDS`. In which direction an episode is wrong is drawn
from its seed alone, so the same episode at another level is wrong in the same direction, only less.
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
from m2distill_policy.sim.osc import rotation_from_vector

#: Every kind of disturbance, and what it does at level 1.
KINDS: dict[str, str] = {
    "camera": "the fixed camera stands 3 cm and 4 degrees elsewhere, the hand's 1 cm and 2 degrees; fields of view 5 %",
    "light": "half or one and a half times the light, from elsewhere",
    "texture": "table, floor and walls in other colours: each channel between 0.4 and 1 times its own",
    "delay": "what the arm is told arrives 3 periods late",
    "gain": "the arm moves 0.6 or 1.4 times as far as it is told",
    "noise": "pixels with a standard deviation of 20 of 255, joints 0.02 rad, fingers 0.002 m",
}
_NAMES = tuple(KINDS)
_CAMERA_MOVE = {"agentview": (0.03, np.radians(4.0)), "robot0_eye_in_hand": (0.01, np.radians(2.0))}
_FIELD_OF_VIEW, _LIGHT, _TEXTURE, _DELAY, _GAIN = 0.05, 0.5, 0.6, 3, 0.4
_PIXELS, _JOINTS, _FINGERS = 20.0, 0.02, 0.002


@dataclass(frozen=True)
class Disturbance:
    """kind: one of :data:`KINDS`. level: 0 (nothing) to 1."""

    kind: str
    level: float

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise SimulationError(
                f"disturbance '{self.kind}' is not known; allowed are {', '.join(KINDS)}{closest(self.kind, KINDS)}"
            )
        if not 0.0 <= self.level <= 1.0:
            raise SimulationError(f"disturbance '{self.kind}' is at level {self.level}; allowed are 0 to 1")

    def __str__(self) -> str:
        return f"{self.kind} {self.level:g}"


class DisturbedEnv:
    """A world (see :class:`SimEnv`) that is wrong in the given ways from each :meth:`reset` on.

    What is drawn is changed in the model that the world draws with, so give it back with :meth:`restore`.
    """

    def __init__(self, env: SimEnv, disturbances: Sequence[Disturbance]) -> None:
        model = getattr(env, "drawn_model", None)
        if model is None:
            raise SimulationError(f"the world of '{env.task.name}' draws with no model that could be disturbed")
        self.task, self.contract = env.task, env.contract
        self._env = env
        self._levels = {d.kind: d.level for d in disturbances}
        self._model = model
        changed = ("cam_pos", "cam_quat", "cam_fovy", "light_diffuse", "light_ambient", "light_dir", "mat_rgba")
        self._originals = {name: getattr(model, name).copy() for name in (*changed, "geom_rgba")}
        headlight = model.vis.headlight
        self._headlight = {name: np.array(getattr(headlight, name)) for name in ("ambient", "diffuse")}
        self._noise: np.random.Generator | None = None
        self._told: deque[NDArray[np.float64]] = deque()
        self._late = 0
        self._gain = 1.0

    # ---- what is wrong ----------------------------------------------------------------------------------------------

    def restore(self) -> None:
        """Let the world look as it did before."""
        for name, values in self._originals.items():
            getattr(self._model, name)[:] = values
        for name, values in self._headlight.items():
            getattr(self._model.vis.headlight, name)[:] = values

    def begin(self, seed: int) -> None:
        """Be wrong in the direction that ``seed`` says, from now on; :meth:`reset` does it too."""
        self.restore()
        self._late, self._gain, self._noise = 0, 1.0, None
        for kind, level in self._levels.items():
            rng = np.random.default_rng([seed, _NAMES.index(kind)])
            getattr(self, f"_begin_{kind}")(level, rng)
        self._told = deque([_still()] * self._late)

    def _begin_camera(self, level: float, rng: np.random.Generator) -> None:
        import mujoco

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

    def _begin_light(self, level: float, rng: np.random.Generator) -> None:
        factor = 1 + level * _LIGHT * rng.choice([-1.0, 1.0])
        headlight = self._model.vis.headlight
        for values in (self._model.light_diffuse, self._model.light_ambient, headlight.ambient, headlight.diffuse):
            values[:] = np.clip(np.asarray(values) * factor, 0.0, 1.0)
        for direction in self._model.light_dir:
            moved = direction + level * 0.5 * _direction(rng)
            direction[:] = moved / np.linalg.norm(moved)

    def _begin_texture(self, level: float, rng: np.random.Generator) -> None:
        fixed = self._model.body_weldid[self._model.geom_bodyid] == 0
        materials = {int(m) for m in self._model.geom_matid[fixed] if m >= 0}
        for index in sorted(materials):
            self._model.mat_rgba[index, :3] *= 1 - level * _TEXTURE * rng.random(3)
        for index in np.flatnonzero(fixed & (self._model.geom_matid < 0)):
            self._model.geom_rgba[index, :3] *= 1 - level * _TEXTURE * rng.random(3)

    def _begin_delay(self, level: float, rng: np.random.Generator) -> None:
        self._late = round(level * _DELAY)

    def _begin_gain(self, level: float, rng: np.random.Generator) -> None:
        self._gain = 1 + level * _GAIN * float(rng.choice([-1.0, 1.0]))

    def _begin_noise(self, level: float, rng: np.random.Generator) -> None:
        self._noise = rng

    # ---- the world --------------------------------------------------------------------------------------------------

    def reset(self, seed: int) -> Observation:
        """See :meth:`SimEnv.reset`; ``seed`` also says in which direction the world is wrong."""
        self.begin(seed)
        return self.seen(self._env.reset(seed))

    def step(self, action: NDArray[np.floating[Any]]) -> Observation:
        """See :meth:`SimEnv.step`."""
        return self.seen(self._env.step(self.told(action)))

    def told(self, action: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """What reaches the arm (7,) when it is told ``action`` (7,) in this period."""
        self._told.append(np.array(action, dtype=np.float64))
        told = self._told.popleft()
        told[:6] = np.clip(told[:6] * self._gain, -1.0, 1.0)
        return told

    def seen(self, observation: Observation) -> Observation:
        """What is made of ``observation`` on its way."""
        level, rng = self._levels.get("noise", 0.0), self._noise
        if rng is None or not level:
            return observation
        images = {
            name: np.clip(frame + rng.normal(0.0, level * _PIXELS, frame.shape), 0, 255).astype(np.uint8)
            for name, frame in observation.images.items()
        }
        spread = {"rad": _JOINTS, "m": _FINGERS}
        readings = {}
        for group in self.contract.proprioception:
            values = observation.proprioception[group.name]
            moved = values + rng.normal(0.0, level * spread.get(group.unit, 0.0), values.shape)
            readings[group.name] = np.clip(moved, group.low, group.high).astype(np.float32)
        return Observation(images, readings, observation.stamp)

    def success(self) -> bool:
        """See :meth:`SimEnv.success`."""
        return self._env.success()

    def achieved(self) -> tuple[str, ...]:
        """See :meth:`SimEnv.achieved`."""
        return self._env.achieved()

    def lifted(self) -> tuple[str, ...]:
        """See :meth:`SimEnv.lifted`."""
        return self._env.lifted()

    def render(self, camera: str, height: int, width: int) -> NDArray[np.uint8]:
        """See :meth:`SimEnv.render`."""
        return self._env.render(camera, height, width)


def _direction(rng: np.random.Generator) -> NDArray[np.float64]:
    """A unit vector (3,), every direction as likely."""
    vector = rng.normal(size=3)
    return np.asarray(vector / np.linalg.norm(vector), dtype=np.float64)


def _still() -> NDArray[np.float64]:
    """No motion, gripper open: what an arm does that has not been told anything."""
    return np.array([0.0] * 6 + [-1.0])
