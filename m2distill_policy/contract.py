"""The contract: cameras, proprioception, actions, units and rate.

The same contract is stored with demonstrations, used in training, exported in the bundle and used on the robot. Each of
these steps compares contracts by :meth:`Contract.require_same` and refuses a mismatch. A contract is stored as JSON and
checked when the object is made.

Conventions (LIBERO's, see https://github.com/Lifelong-Robot-Learning/LIBERO):

* images are uint8, H x W x 3, RGB, upright (row 0 is the top);
* ``joint_states`` are 7 joint angles in rad, ``gripper_states`` 2 finger positions in m
  (robosuite's second finger is negative, -0.04..0);
* an action has 7 entries in [-1, 1]: end-effector translation, rotation vector, gripper
  (-1 open, +1 closed), in the robot's base frame.
"""

# Longer than 400 lines because the parts of a contract are checked against each other.

from __future__ import annotations

import bisect
import dataclasses
import functools
import itertools
import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.contract_fields import (
    FRAME,
    HEXADECIMAL,
    NAME,
    check_entries,
    check_number,
    check_numbers,
    check_text,
    check_whole,
    checked_list,
    checked_object,
    fields_of,
    shown,
)
from m2distill_policy.errors import ContractError
from m2distill_policy.strict_json import JsonError, parse

FORMAT_VERSION = 1

#: Units of proprioception.
UNITS = ("rad", "m")
#: Entries of an action, in order.
ACTION_AXES = ("x", "y", "z", "rx", "ry", "rz", "gripper")

# Plausible ranges. They are wide enough for any arm that works near people, and narrow enough to refuse most damaged
# numbers.
#: Range of a view's height and width in pixels, and of its field of view in degrees.
IMAGE_SIDE, FIELD_OF_VIEW = (16, 4096), (1.0, 179.0)
#: Largest number of views, of proprioception groups, of entries in a group, and of characters in a name.
MOST_CAMERAS, MOST_GROUPS, MOST_ENTRIES, LONGEST_NAME = 16, 16, 64, 64
#: Largest absolute value of a limit (``low``, ``high``) of proprioception, rad or m.
LARGEST_READING = 10_000.0
#: Ranges of ``translation_scale`` (m) and ``rotation_scale`` (rad): how far an action of 1 puts the set-point ahead of
#: the arm.
TRANSLATION_SCALE, ROTATION_SCALE = (1e-6, 0.5), (1e-6, math.pi)
#: Largest speed of an action of 1 on each axis, m/s and rad/s. The fastest arms that work near people reach 3 m/s.
FASTEST = (5.0, 5.0, 5.0, 20.0, 20.0, 20.0)
#: Largest number of levels of a velocity response, and smallest distance between two levels.
MOST_LEVELS, LEVEL_DISTANCE = 64, 1e-3
#: Range of the rate in Hz; range of the history in steps; largest size of the images of a history in bytes.
RATE, HISTORY, LARGEST_HISTORY = (1.0, 200.0), (1, 1000), 4 * 2**30
#: Range of the size of an embedding, and of the factor that scales its values.
TEXT_SIZE, TEXT_SCALING = (1, 65_536), (1e-6, 1e6)
#: Largest number of characters of a contract as JSON.
LONGEST_TEXT = 2**20
#: Names that views and proprioception groups must not have, because inputs and outputs of the graphs have them.
RESERVED = ("text_token", "film", "past_tokens", "past_count", "embedding", "logits", "means", "scales", "tokens")


@dataclass(frozen=True)
class Camera:
    """One view: ``height`` x ``width`` x 3, uint8, RGB, upright; ``fov_y`` is the vertical field of view in degrees."""

    name: str
    height: int
    width: int
    fov_y: float

    def __post_init__(self) -> None:
        check_text("a camera's name", self.name, LONGEST_NAME, NAME)
        where = f"camera '{self.name}'"
        if self.name in (*RESERVED, "joint_states"):
            raise ContractError(f"{where} has a reserved name; choose another one")
        if not all(isinstance(n, int) and not isinstance(n, bool) for n in (self.height, self.width)):
            raise ContractError(
                f"{where} is {shown(self.height)} x {shown(self.width)} pixels; whole numbers are needed"
            )
        least, most = IMAGE_SIDE
        if min(self.height, self.width) < least or max(self.height, self.width) > most:
            raise ContractError(
                f"{where} is {shown(self.height)} x {shown(self.width)} pixels; at least {least} x {least} and at most "
                f"{most} x {most} is needed"
            )
        check_number(f"the vertical field of view of {where}", self.fov_y, *FIELD_OF_VIEW, "degrees")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one frame: (height, width, 3)."""
        return (self.height, self.width, 3)


@dataclass(frozen=True)
class Proprioception:
    """A group of joint positions: names in order, unit, and the range of allowed values."""

    name: str
    entries: tuple[str, ...]
    unit: str
    low: float
    high: float

    def __post_init__(self) -> None:
        check_text("a proprioception group's name", self.name, LONGEST_NAME, NAME)
        where = f"proprioception '{self.name}'"
        if self.name in RESERVED:
            raise ContractError(f"{where} has a reserved name; choose another one")
        check_entries(f"{where}: entries", self.entries, 1, MOST_ENTRIES, str)
        for i, entry in enumerate(self.entries):
            check_text(f"{where}: entries[{i}]", entry, LONGEST_NAME)
        if len(set(self.entries)) != len(self.entries):
            raise ContractError(f"{where} names an entry twice: {shown(self.entries)}")
        if self.unit not in UNITS:
            raise ContractError(f"{where} is in {shown(self.unit)}; {' or '.join(UNITS)} is needed")
        for side in ("low", "high"):
            check_number(f"{where}: {side}", getattr(self, side), -LARGEST_READING, LARGEST_READING, self.unit)
        if not self.low < self.high:
            raise ContractError(f"{where} has range [{self.low}, {self.high}]; low must be below high")

    @property
    def size(self) -> int:
        """Number of entries."""
        return len(self.entries)


@dataclass(frozen=True)
class VelocityResponse:
    """The speed at which the demonstrated arm moved for each size of action, for arms that are driven by velocity.

    An OSC delta is a set-point ahead of the arm, not a distance travelled. An impedance controller follows the
    set-point with a lag, and the arm's speed is not proportional to the delta. The response is fitted to
    demonstrations. It is linear between levels, and an odd function of the action.

    Attributes:
        levels: Absolute values of an action, increasing from 0 to 1.
        velocities: The speed that the arm reached, for each axis and level (m/s for x, y, z; rad/s for rx, ry, rz).
        fitted_from: Number of demonstration steps that the response was fitted to.
    """

    levels: tuple[float, ...]
    velocities: tuple[tuple[float, ...], ...]
    fitted_from: int = 0

    def __post_init__(self) -> None:
        check_numbers("velocity response: levels", self.levels, 2, MOST_LEVELS, 0.0, 1.0)
        rises = np.diff(np.asarray(self.levels, dtype=np.float64))
        if self.levels[0] != 0.0 or self.levels[-1] != 1.0 or rises.min() < LEVEL_DISTANCE:
            raise ContractError(
                f"velocity response levels are {shown(self.levels)}; they must rise from 0 to 1, by at least "
                f"{LEVEL_DISTANCE:g} each"
            )
        check_entries("velocity response: velocities", self.velocities, 6, 6, tuple)
        for axis, row, fastest in zip(ACTION_AXES, self.velocities, FASTEST, strict=False):
            where = f"velocity response: speeds of '{axis}'"
            check_numbers(where, row, len(self.levels), len(self.levels), -fastest, fastest)
            if row[0] != 0 or any(after < before for before, after in itertools.pairwise(row)):
                raise ContractError(
                    f"{where} are {shown(row)}; they must be 0 at level 0 and never fall as the action grows"
                )
        check_whole("velocity response: fitted_from", self.fitted_from, 0, 10**12)

    def twist(self, action: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Return the velocity (6,) in m/s and rad/s, base frame, for an action (7,) in [-1, 1]."""
        values = np.asarray(action, dtype=np.float64)[:6].tolist()
        return np.array([self._speed(value, row) for value, row in zip(values, self.velocities, strict=True)])

    def _speed(self, value: float, row: tuple[float, ...]) -> float:
        """Interpolate like :func:`numpy.interp`, to the last bit, as an odd function of ``value``.

        For a single number, numpy.interp takes fifteen times as long.
        """
        size, levels = abs(value), self.levels
        if not size < 1.0:
            speed = row[-1] if size >= 1.0 else size  # size is NaN
        else:
            after = bisect.bisect_right(levels, size)
            x, y = levels[after - 1], row[after - 1]
            speed = (row[after] - y) / (levels[after] - x) * (size - x) + y if size != x else y
        return speed if value > 0 else -speed if value < 0 else 0.0 * size

    def size_for(self, axis: int, speed: float) -> float:
        """Return the smallest absolute action on ``axis`` that reaches ``speed`` (m/s or rad/s, >= 0), at most 1."""
        if not speed > 0:
            return 0.0
        size = float(np.interp(speed, self.velocities[axis], self.levels))
        return min(size, 1.0)  # between two nearly equal speeds the line is steep, and rounding can give more than 1

    @property
    def top_speeds(self) -> tuple[float, ...]:
        """Speed of an action of 1 on each axis: m/s for x, y, z; rad/s for rx, ry, rz."""
        return tuple(float(row[-1]) for row in self.velocities)

    @staticmethod
    def default() -> VelocityResponse:
        """Return the response measured on robosuite's OSC_POSE Panda: 0.2 m/s and 1.2 rad/s at action 1."""
        levels = (0.0, 0.25, 0.5, 1.0)
        linear = (0.0, 0.06, 0.12, 0.2)
        angular = (0.0, 0.35, 0.7, 1.2)
        return VelocityResponse(levels, (linear,) * 3 + (angular,) * 3)


@dataclass(frozen=True)
class Action:
    """The action: seven entries in [-1, 1] for translation (3), rotation vector (3) and gripper (1).

    The translation times ``translation_scale`` (m) and the rotation times ``rotation_scale`` (rad) give a set-point
    relative to the current pose, in ``frame``. ``response`` gives the velocity that an action causes.
    """

    translation_scale: float = 0.05
    rotation_scale: float = 0.5
    frame: str = "base"
    size: int = 7
    response: VelocityResponse = dataclasses.field(default_factory=VelocityResponse.default)

    def __post_init__(self) -> None:
        check_text("action.frame", self.frame, LONGEST_NAME, FRAME)
        check_whole("action.size", self.size, 1, 1000)
        if self.size != len(ACTION_AXES):
            raise ContractError(
                f"action has {self.size} entries; only {len(ACTION_AXES)} ({', '.join(ACTION_AXES)}) are known"
            )
        check_number("action.translation_scale", self.translation_scale, *TRANSLATION_SCALE, "m")
        check_number("action.rotation_scale", self.rotation_scale, *ROTATION_SCALE, "rad")
        if not isinstance(self.response, VelocityResponse):
            raise ContractError(f"action.response is {shown(self.response)}; a velocity response is needed")


@dataclass(frozen=True)
class Text:
    """The text encoder of instructions. Embeddings are comparable only if all of these fields are equal."""

    encoder: str
    sha256: str
    pooling: str
    scaling: float
    size: int

    def __post_init__(self) -> None:
        check_text("text.encoder", self.encoder, LONGEST_NAME)
        check_text("text.sha256", self.sha256, 64, HEXADECIMAL)
        check_text("text.pooling", self.pooling, LONGEST_NAME)
        check_number("text.scaling", self.scaling, *TEXT_SCALING)
        check_whole("text.size", self.size, *TEXT_SIZE)


@dataclass(frozen=True)
class Contract:
    """What a policy observes and does. The module's docstring states the conventions."""

    cameras: tuple[Camera, ...]
    proprioception: tuple[Proprioception, ...]
    action: Action
    text: Text | None
    rate_hz: float = 20.0
    history: int = 10

    def __post_init__(self) -> None:
        if self.cameras == ():
            raise ContractError("a contract needs at least one camera; got none")
        check_entries("cameras", self.cameras, 1, MOST_CAMERAS, Camera)
        check_entries("proprioception", self.proprioception, 0, MOST_GROUPS, Proprioception)
        names = [c.name for c in self.cameras] + [p.name for p in self.proprioception]
        if len(set(names)) != len(names):
            raise ContractError(f"a contract names an input twice: {shown(names)}")
        topics = [c.name.removesuffix("_rgb") for c in self.cameras]
        if len(set(topics)) != len(topics):
            raise ContractError(f"two cameras differ only in '_rgb': {shown(self.camera_names)}; rename one")
        if not isinstance(self.action, Action):
            raise ContractError(f"action is {shown(self.action)}; an Action is needed")
        if self.text is not None and not isinstance(self.text, Text):
            raise ContractError(f"text is {shown(self.text)}; a Text or None is needed")
        check_number("rate_hz", self.rate_hz, *RATE, "Hz")
        check_whole("history", self.history, *HISTORY)
        kept = self.history * sum(c.height * c.width * 3 for c in self.cameras)
        if kept > LARGEST_HISTORY:
            raise ContractError(
                f"{self.history} steps of these views are {kept / 2**30:.1f} GiB of images; at most "
                f"{LARGEST_HISTORY / 2**30:g} GiB are allowed: choose smaller views or a shorter history"
            )

    @property
    def period(self) -> float:
        """Seconds between two actions."""
        return 1.0 / self.rate_hz

    @functools.cached_property
    def camera_names(self) -> tuple[str, ...]:
        """Names of the views, in order."""
        return tuple(c.name for c in self.cameras)

    @functools.cached_property
    def proprioception_names(self) -> tuple[str, ...]:
        """Names of the proprioception groups, in order."""
        return tuple(p.name for p in self.proprioception)

    def camera(self, name: str) -> Camera:
        """Return the view called ``name``; raise :class:`ContractError` if there is none."""
        for camera in self.cameras:
            if camera.name == name:
                return camera
        raise ContractError(f"no camera '{name}' in the contract; it has {list(self.camera_names)}")

    def to_dict(self) -> dict[str, Any]:
        """Convert the contract to JSON types, with the version of the format."""
        return {"version": FORMAT_VERSION, **dataclasses.asdict(self)}

    def to_json(self) -> str:
        """Convert the contract to indented JSON with sorted keys."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True)

    @staticmethod
    def from_dict(data: Any) -> Contract:
        """Read what :meth:`to_dict` returned; raise :class:`ContractError` that names a wrong field."""
        found = checked_object(data, "a contract")
        version = found.pop("version", None)
        if version != FORMAT_VERSION or not isinstance(version, int) or isinstance(version, bool):
            raise ContractError(
                f"contract is of version {shown(version)}; this software reads version {FORMAT_VERSION}"
            )
        top = fields_of(found, Contract, "the contract")
        action = fields_of(top["action"], Action, "action")
        response = fields_of(action["response"], VelocityResponse, "action.response")
        response["levels"] = checked_list(response["levels"], "action.response.levels")
        response["velocities"] = tuple(
            checked_list(row, f"action.response.velocities[{i}]")
            for i, row in enumerate(checked_list(response["velocities"], "action.response.velocities"))
        )
        action["response"] = VelocityResponse(**response)
        cameras = [
            fields_of(camera, Camera, f"cameras[{i}]")
            for i, camera in enumerate(checked_list(top["cameras"], "cameras"))
        ]
        groups = [
            fields_of(group, Proprioception, f"proprioception[{i}]")
            for i, group in enumerate(checked_list(top["proprioception"], "proprioception"))
        ]
        for i, group in enumerate(groups):
            group["entries"] = checked_list(group["entries"], f"proprioception[{i}].entries")
        top["cameras"] = tuple(Camera(**camera) for camera in cameras)
        top["proprioception"] = tuple(Proprioception(**group) for group in groups)
        top["action"] = Action(**action)
        top["text"] = Text(**fields_of(top["text"], Text, "text")) if top["text"] is not None else None
        return Contract(**top)

    @staticmethod
    def from_json(text: str) -> Contract:
        """Read what :meth:`to_json` returned; raise :class:`ContractError` if it is not a valid contract."""
        try:
            data = parse(text, longest=LONGEST_TEXT)
        except JsonError as error:
            raise ContractError(f"contract is not JSON: {error}") from error
        return Contract.from_dict(data)

    def differences(self, other: Contract) -> list[str]:
        """Return one line for each field that differs from ``other``, as ``field: here != there``."""
        return _differences(self.to_dict(), other.to_dict(), "")

    def require_same(self, other: Contract, here: str, there: str, *, ignore: tuple[str, ...] = ()) -> None:
        """Check that ``other`` is the same contract.

        Args:
            other: The contract to compare with.
            here: Name of this contract in the message.
            there: Name of ``other`` in the message.
            ignore: Prefixes of fields that may differ, such as ``"action.response"``.

        Raises:
            ContractError: The contracts differ. The message names every field that differs.
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
    """Return LIBERO's contract: two square views of ``size`` pixels, Panda joints, two fingers, 20 Hz, 10 steps."""
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
