"""The contract: what is observed, what is acted, how often, in which units.

One object rides along the whole road. Demonstrations are recorded under it, a policy is trained and
exported under it, and a robot serves it; every joint of the road calls :meth:`Contract.require_same`
and refuses a mismatch. It goes in and out of JSON and is checked when it is made.

Conventions (LIBERO's, see https://github.com/Lifelong-Robot-Learning/LIBERO):

* images are uint8, H x W x 3, RGB, upright (row 0 is the top);
* ``joint_states`` are 7 joint angles in rad, ``gripper_states`` 2 finger positions in m
  (robosuite's second finger is negative, -0.04..0);
* an action has 7 entries in [-1, 1]: end-effector translation, rotation vector, gripper
  (-1 open, +1 closed), in the robot's base frame.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.errors import ContractError

FORMAT_VERSION = 1

#: What readings may be in.
UNITS = ("rad", "m")
#: Entries of an action, in order.
ACTION_AXES = ("x", "y", "z", "rx", "ry", "rz", "gripper")


@dataclass(frozen=True)
class Camera:
    """One view: ``height`` x ``width`` x 3, uint8, RGB, upright; ``fov_y`` is the vertical field of view in degrees."""

    name: str
    height: int
    width: int
    fov_y: float

    def __post_init__(self) -> None:
        if not all(isinstance(n, int) and not isinstance(n, bool) for n in (self.height, self.width)):
            raise ContractError(
                f"camera '{self.name}' is {self.height!r} x {self.width!r} pixels; whole numbers are needed"
            )
        if self.height < 16 or self.width < 16:
            raise ContractError(
                f"camera '{self.name}' is {self.height} x {self.width} pixels; at least 16 x 16 is needed"
            )
        if not 1.0 <= self.fov_y < 180.0:
            raise ContractError(
                f"camera '{self.name}' has a vertical field of view of {self.fov_y}; degrees in [1, 180)"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one frame: (height, width, 3)."""
        return (self.height, self.width, 3)


@dataclass(frozen=True)
class Proprioception:
    """A group of scalar readings: entry names in order, their unit, and the range beyond which a reading is refused."""

    name: str
    entries: tuple[str, ...]
    unit: str
    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.entries:
            raise ContractError(f"proprioception '{self.name}' has no entries; name at least one")
        if len(set(self.entries)) != len(self.entries):
            raise ContractError(f"proprioception '{self.name}' names an entry twice: {list(self.entries)}")
        if self.unit not in UNITS:
            raise ContractError(f"proprioception '{self.name}' is in '{self.unit}'; {' or '.join(UNITS)} is needed")
        if not self.low < self.high:
            raise ContractError(
                f"proprioception '{self.name}' has range [{self.low}, {self.high}]; low must be below high"
            )

    @property
    def size(self) -> int:
        """Number of entries."""
        return len(self.entries)


@dataclass(frozen=True)
class VelocityResponse:
    """How fast the demonstrated arm moved for an action, for arms that are driven by velocity.

    An OSC delta is a set-point ahead of the arm, not a distance travelled: an impedance controller follows it
    with a lag, and not in proportion. ``velocities[axis][i]`` is the speed (m/s for x, y, z; rad/s for rx, ry,
    rz) that the arm reached when the action on that axis had the size ``levels[i]``; between levels it is
    linear, and it is odd in the action. Fitted from demonstrations; ``fitted_from`` says how many steps.
    """

    levels: tuple[float, ...]
    velocities: tuple[tuple[float, ...], ...]
    fitted_from: int = 0

    def __post_init__(self) -> None:
        levels = np.asarray(self.levels, dtype=np.float64)
        if levels.size < 2 or levels[0] != 0.0 or levels[-1] != 1.0 or np.any(np.diff(levels) <= 0):
            raise ContractError(f"velocity response levels are {self.levels}; they must rise from 0 to 1")
        if len(self.velocities) != 6 or any(len(row) != levels.size for row in self.velocities):
            raise ContractError(f"velocity response needs 6 axes of {levels.size} speeds each")
        table = np.asarray(self.velocities, dtype=np.float64)
        if not np.all(np.isfinite(table)) or np.any(table[:, 0] != 0) or np.any(np.diff(table, axis=1) < 0):
            raise ContractError("velocity response must be finite, 0 at level 0, and never fall as the action grows")

    def twist(self, action: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Velocity (6,) in m/s and rad/s, base frame, for an action (7,) in [-1, 1]."""
        size = np.abs(np.asarray(action, dtype=np.float64)[:6])
        speed = np.array([np.interp(size[i], self.levels, self.velocities[i]) for i in range(6)])
        return np.sign(np.asarray(action, dtype=np.float64)[:6]) * speed

    def size_for(self, axis: int, speed: float) -> float:
        """The least size of the action on ``axis`` that reaches ``speed`` (m/s or rad/s, not negative), at most 1."""
        return float(np.interp(speed, self.velocities[axis], self.levels)) if speed > 0 else 0.0

    @staticmethod
    def default() -> VelocityResponse:
        """A first guess measured on robosuite's OSC_POSE Panda: about 0.2 m/s and 1.2 rad/s at action 1.0."""
        levels = (0.0, 0.25, 0.5, 1.0)
        linear = (0.0, 0.06, 0.12, 0.2)
        angular = (0.0, 0.35, 0.7, 1.2)
        return VelocityResponse(levels, (linear,) * 3 + (angular,) * 3)


@dataclass(frozen=True)
class Action:
    """Seven entries in [-1, 1]: translation x ``translation_scale`` m, rotation x ``rotation_scale`` rad, gripper.

    The scaled delta is a set-point relative to the present pose, in ``frame``; ``response`` is the velocity it meant.
    """

    translation_scale: float = 0.05
    rotation_scale: float = 0.5
    frame: str = "base"
    size: int = 7
    response: VelocityResponse = dataclasses.field(default_factory=VelocityResponse.default)

    def __post_init__(self) -> None:
        if self.size != len(ACTION_AXES):
            raise ContractError(
                f"action has {self.size} entries; only {len(ACTION_AXES)} ({', '.join(ACTION_AXES)}) are known"
            )
        for name in ("translation_scale", "rotation_scale"):
            scale = getattr(self, name)
            if not (math.isfinite(scale) and scale > 0):
                raise ContractError(f"action.{name} is {scale}; a positive number is needed")


@dataclass(frozen=True)
class Text:
    """How an instruction becomes numbers. Two embeddings compare only if all of these are equal."""

    encoder: str
    sha256: str
    pooling: str
    scaling: float
    size: int


@dataclass(frozen=True)
class Contract:
    """What a policy sees, does and is told. See the module's text for conventions."""

    cameras: tuple[Camera, ...]
    proprioception: tuple[Proprioception, ...]
    action: Action
    text: Text | None
    rate_hz: float = 20.0
    history: int = 10

    def __post_init__(self) -> None:
        if not self.cameras:
            raise ContractError("a contract needs at least one camera; got none")
        names = [c.name for c in self.cameras] + [p.name for p in self.proprioception]
        if len(set(names)) != len(names):
            raise ContractError(f"a contract names an input twice: {names}")
        if not (math.isfinite(self.rate_hz) and self.rate_hz > 0):
            raise ContractError(f"rate is {self.rate_hz} Hz; it must be positive")
        if not isinstance(self.history, int) or self.history < 1:
            raise ContractError(f"history is {self.history!r} steps; a whole number of at least 1 is needed")

    @property
    def period(self) -> float:
        """Seconds between two actions."""
        return 1.0 / self.rate_hz

    @property
    def camera_names(self) -> tuple[str, ...]:
        """Names of the views, in order."""
        return tuple(c.name for c in self.cameras)

    @property
    def proprioception_names(self) -> tuple[str, ...]:
        """Names of the proprioception groups, in order."""
        return tuple(p.name for p in self.proprioception)

    def camera(self, name: str) -> Camera:
        """The view called ``name``; raises :class:`ContractError` for an unknown one."""
        for camera in self.cameras:
            if camera.name == name:
                return camera
        raise ContractError(f"no camera '{name}' in the contract; it has {list(self.camera_names)}")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, with the format's version."""
        return {"version": FORMAT_VERSION, **dataclasses.asdict(self)}

    def to_json(self) -> str:
        """Indented JSON, keys sorted."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True)

    @staticmethod
    def from_dict(data: Any) -> Contract:
        """Read what :meth:`to_dict` wrote; raises :class:`ContractError` naming the field that is wrong."""
        if not isinstance(data, dict):
            raise ContractError(f"a contract is a JSON object; got {type(data).__name__}")
        version = data.get("version")
        if version != FORMAT_VERSION:
            raise ContractError(f"contract is of version {version!r}; this software reads version {FORMAT_VERSION}")
        try:
            action = dict(data["action"])
            response = action.pop("response")
            return Contract(
                cameras=tuple(Camera(**c) for c in data["cameras"]),
                proprioception=tuple(
                    Proprioception(**{**p, "entries": tuple(p["entries"])}) for p in data["proprioception"]
                ),
                action=Action(
                    **action,
                    response=VelocityResponse(
                        levels=tuple(response["levels"]),
                        velocities=tuple(tuple(row) for row in response["velocities"]),
                        fitted_from=response["fitted_from"],
                    ),
                ),
                text=Text(**data["text"]) if data["text"] is not None else None,
                rate_hz=data["rate_hz"],
                history=data["history"],
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ContractError(f"contract cannot be read: {type(error).__name__}: {error}") from error

    @staticmethod
    def from_json(text: str) -> Contract:
        """Read what :meth:`to_json` wrote."""
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ContractError(f"contract is not JSON: {error}") from error
        return Contract.from_dict(data)

    def differences(self, other: Contract) -> list[str]:
        """One line a field that differs between this contract and ``other``, as ``field: here != there``."""
        return _differences(self.to_dict(), other.to_dict(), "")

    def require_same(self, other: Contract, here: str, there: str, *, ignore: tuple[str, ...] = ()) -> None:
        """Raise :class:`ContractError` naming every field in which ``other`` differs.

        ``ignore`` holds prefixes of fields that may differ, such as ``"action.response"``.
        """
        lines = [d for d in self.differences(other) if not d.startswith(ignore)] if ignore else self.differences(other)
        if lines:
            raise ContractError(f"{here} and {there} do not fit together: " + "; ".join(lines))


def _differences(a: Any, b: Any, path: str) -> list[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        lines: list[str] = []
        for key in sorted(set(a) | set(b)):
            where = f"{path}.{key}" if path else key
            if key not in a:
                lines.append(f"{where}: absent != {b[key]!r}")
            elif key not in b:
                lines.append(f"{where}: {a[key]!r} != absent")
            else:
                lines += _differences(a[key], b[key], where)
        return lines
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return [line for i, (x, y) in enumerate(zip(a, b, strict=True)) for line in _differences(x, y, f"{path}[{i}]")]
    a_plain = list(a) if isinstance(a, tuple) else a
    b_plain = list(b) if isinstance(b, tuple) else b
    return [] if a_plain == b_plain else [f"{path}: {a_plain!r} != {b_plain!r}"]


def libero_contract(
    size: int = 128, text: Text | None = None, *, fov_agentview: float = 45.0, fov_hand: float = 75.0
) -> Contract:
    """LIBERO's contract: two square views of ``size`` pixels, Panda joints, two fingers, 20 Hz, 10 steps of history."""
    return Contract(
        cameras=(
            Camera("agentview_rgb", size, size, fov_agentview),
            Camera("eye_in_hand_rgb", size, size, fov_hand),
        ),
        proprioception=(
            Proprioception(
                "joint_states", tuple(f"panda_joint{i}" for i in range(1, 8)), "rad", -2 * math.pi, 2 * math.pi
            ),
            Proprioception("gripper_states", ("panda_finger_joint1", "panda_finger_joint2"), "m", -0.1, 0.1),
        ),
        action=Action(),
        text=text,
    )
