"""What a policy node may do after what it has been sent: rules that are written here anew, not taken from the product.

:class:`Expected` is told every message that a node gets and sees every cycle that it publishes. Where it cannot know
whether a message counts, it lets more pass than the product does.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.contract import Contract
from m2distill_policy.node import topics
from m2distill_policy.node.gripper import GripperProfile
from m2distill_policy.runtime.safety import SafetyLimits
from m2distill_policy.runtime.status import StatusCode
from m2distill_policy.runtime.watchdog import WatchLimits
from tests.fuzz.invariant import Violation, require

Array = NDArray[np.float64]

#: s for which a pose may be what a set-point is made of, beyond the age of the picture that is answered.
POSE_AGE = 0.3
#: s after an odd message for which the stream that it came on is not judged sharply.
ODD = 1.5
#: s over which commanded motion is added up, as docs/ros2.md states it.
WINDOW = 2.0
_RUNNING = int(StatusCode.RUNNING)


@dataclasses.dataclass(frozen=True)
class Setup:
    """What the rules depend on. shared: whether the operator's switches have two publishers each: a press stays then,
    and a dead-man switch counts as let go."""

    limits: SafetyLimits
    watch: WatchLimits
    contract: Contract
    instructions: tuple[str, ...]
    lockstep: bool
    enabled: bool
    shared: bool = False

    @property
    def ramp(self) -> int:
        """Cycles that a ramp to a halt may take."""
        return max(1, math.ceil(self.limits.halt_time / self.contract.period - 1e-9))


@dataclasses.dataclass
class _Pose:
    stamp: int
    arrived: float
    place: Array
    turn: Array


class _Same:
    """How long the values of a stream have been the very same, and what was commanded meanwhile."""

    def __init__(self, kept: int) -> None:
        self.value: object = None
        #: How often it came, and the cycles that drove and the commands to move since it changed.
        self.times = self.answers = self.commands = 0
        self.ways: deque[tuple[float, float]] = deque(maxlen=kept)

    def clear(self) -> None:
        self.value = None
        self._changed()

    def _changed(self) -> None:
        self.times = self.answers = self.commands = 0
        self.ways.clear()

    def came(self, value: object) -> None:
        if value != self.value:
            self.value = value
            self._changed()
        self.times += 1

    def commanded(self, twist: Array, period: float) -> None:
        if twist.any():
            self.commands += 1
            self.ways.append((float(np.linalg.norm(twist[:3])) * period, float(np.linalg.norm(twist[3:])) * period))

    @property
    def way(self) -> float:
        """m or rad that was commanded of late, without the newest command, which may be under way."""
        ways = list(self.ways)[:-1]
        return max((sum(way) for way in zip(*ways, strict=True)), default=0.0)


class Expected:
    """See the module's text. ``monotonic``: the node's monotonic clock, s."""

    def __init__(self, setup: Setup, monotonic: Callable[[], float]) -> None:
        self._setup, self._monotonic = setup, monotonic
        self._contract = setup.contract
        response = setup.contract.action.response
        self._levels, self._speeds = np.array(response.levels), np.array(response.velocities)
        #: Why it must not be RUNNING, where only the operator can change that.
        self._pressed = self._let_go = self._left = False
        self._enabled, self._asked = setup.enabled, False
        self._instruction: str | None = setup.instructions[0]
        self._instruction_known = True
        self._held: tuple[bool, float] | None = None
        self._poses: deque[_Pose] = deque(maxlen=64)
        self._odd_pose = -math.inf
        kept = max(1, math.ceil(WINDOW / setup.contract.period))
        self._joints, self._pose = _Same(kept), _Same(kept)
        self._views = {name: _Same(kept) for name in setup.contract.camera_names}
        #: Joints of the newest two observations, and where they were when a view changed last.
        self._positions: deque[Array] = deque(maxlen=2)
        self._since: dict[str, Array] = {}
        self._cycle: dict[str, Any] = {}
        #: The newest twists, of cycles in a row: (twist, whether the policy drove).
        self._twists: deque[tuple[Array, bool]] = deque(maxlen=3)
        self._ramping = 0
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._twists.clear()
        self._twists.extend([(np.zeros(6), False)] * 3)
        self._ramping = 0

    # --- what the node is sent ----------------------------------------------------------------------------------------

    def operator(self, topic: str, message: Any) -> None:
        """A message that is not one of a good robot's; None where it cannot be read, so that it cannot count."""
        if topic in (topics.END_EFFECTOR_POSE, topics.EPISODE):
            self._odd_pose = self._monotonic()
            self._pose.clear()
        if topic in (topics.JOINT_STATES, topics.EPISODE):
            self._joints.clear()
            self._positions.clear()
        for name, view in self._views.items():
            if topic in (topics.camera_topic(name), topics.EPISODE):
                view.clear()
        if message is None:
            return
        if topic == topics.EMERGENCY_STOP:
            self._let_go = self._let_go or (self._pressed and not message.data)
            self._pressed = bool(message.data) or (self._pressed and self._setup.shared)
        elif topic == topics.ENABLE:
            self._enable(bool(message.data))
        elif topic == topics.DEAD_MAN:
            self._held = bool(message.data) and not self._setup.shared, self._monotonic()
        elif topic == topics.INSTRUCTION:
            self._instruction, self._instruction_known = message.data, True
        elif topic == topics.EPISODE and self._setup.lockstep:
            self._instruction_known = False
            self._begin_anew()
        elif topic == topics.END_EFFECTOR_POSE:
            self._keep(message, self._monotonic())

    def _enable(self, wanted: bool) -> None:
        """True counts once, until false is heard, and not while the emergency stop is pressed."""
        repeated, self._asked = wanted and self._asked, wanted
        if repeated or (self._pressed and wanted):
            return
        self._enabled = wanted
        if wanted:
            self._let_go = False
            self._joints.clear()
            self._pose.clear()

    def leave(self) -> None:
        """The node is asked to go."""
        self._left = True

    def joints(self, positions: Sequence[float]) -> None:
        """A good robot's joints."""
        self._joints.came(tuple(positions))
        self._positions.append(np.array(positions))

    def pose(self, message: Any) -> None:
        """A good robot's pose."""
        self._keep(message, self._monotonic())
        place, turn = message.pose.position, message.pose.orientation
        self._pose.came((place.x, place.y, place.z, turn.x, turn.y, turn.z, turn.w))

    def view(self, name: str, frame: bytes) -> None:
        """A good robot's picture."""
        same = self._views[name]
        if frame != same.value:
            self._since.pop(name, None)
        same.came(frame)

    def _keep(self, message: Any, now: float) -> None:
        place, turn = message.pose.position, message.pose.orientation
        quaternion = np.array([turn.w, turn.x, turn.y, turn.z])
        numbers = np.array([place.x, place.y, place.z, *quaternion])
        if np.isfinite(numbers).all() and abs(float(np.linalg.norm(quaternion)) - 1) < 0.01:
            stamp = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
            self._poses.append(_Pose(stamp, now, numbers[:3], _matrix(quaternion)))

    # --- what it publishes --------------------------------------------------------------------------------------------

    def see(self, topic: str, message: Any) -> None:
        """A message of a cycle, ``~/status`` last."""
        self._cycle[topic] = message
        if topic == topics.STATUS:
            cycle, self._cycle = self._cycle, {}
            self._judge(cycle)

    def _judge(self, cycle: dict[str, Any]) -> None:
        status, action = cycle[topics.STATUS], cycle.get(topics.ACTION)
        driven = status.code == _RUNNING
        if driven:
            self._may_run(status)
            self._is_alive()
        twist = _twist(cycle[topics.TWIST]) if topics.TWIST in cycle else None
        if twist is not None:
            self._judge_twist(twist, driven)
            for same in (self._joints, self._pose, *self._views.values()):
                same.commanded(twist, self._contract.period)
        for name in self._views:
            # Since the first answer to it: pictures that belonged to no observation do not count.
            if driven and name not in self._since and self._positions:
                self._since[name] = self._positions[-1]
        for same in (self._joints, self._pose, *self._views.values()):
            same.answers += driven
        values = np.array(action.action) if action is not None else None
        if twist is not None and values is not None:
            meant = np.sign(values[:6]) * [
                np.interp(abs(v), self._levels, row) for v, row in zip(values[:6], self._speeds, strict=True)
            ]
            near("~/twist is not what ~/action means", twist, meant, meant)
        if topics.TARGET_POSE in cycle:
            self._judge_target(cycle[topics.TARGET_POSE], values, action, status)
        if driven and values is not None:
            self._judge_walls(values, status)
        if topics.GRIPPER_COMMAND in cycle and values is not None:
            profile = GripperProfile()
            wanted = profile.closed_position if values[6] > 0 else profile.open_position
            require(cycle[topics.GRIPPER_COMMAND].position == wanted, "the gripper is told the opposite", values[6])

    def _may_run(self, status: Any) -> None:
        require(not self._pressed, "RUNNING with the emergency stop pressed")
        require(not self._let_go, "RUNNING after the emergency stop was let go, and nobody enabled")
        require(self._enabled, "RUNNING although nobody enabled")
        require(not self._left, "RUNNING while the node leaves")
        if self._instruction_known:
            known = self._instruction in self._setup.instructions
            require(known, "RUNNING with an instruction that is not known", repr(self._instruction)[:80])
            require(status.instruction == self._instruction, "RUNNING with another instruction", status.instruction)
        longest = self._setup.watch.dead_man
        if longest is not None:
            held, since = self._held or (False, -math.inf)
            require(held and self._monotonic() - since <= longest + 1e-6, "RUNNING with the dead-man switch let go")
        if self._setup.limits.needs_pose and not self._setup.lockstep:
            newest = max((pose.arrived for pose in self._poses), default=-math.inf)
            require(
                self._monotonic() - newest < 1.0, "RUNNING in a workspace without a pose", self._monotonic() - newest
            )

    def _is_alive(self) -> None:
        """Streams that stay the same while the arm is told to move."""
        watch = self._setup.watch
        after = watch.frozen_after
        if after is None:
            return
        if self._joints.commands >= after + 2:
            require(self._joints.way <= 1.05 * watch.frozen_motion, "RUNNING on frozen joints", self._joints.way)
        # Poses that do not come any more are another matter: without a workspace they are not needed.
        if min(self._pose.times, self._pose.commands, self._pose.answers) >= after + 2:
            require(self._pose.way <= 1.05 * watch.frozen_motion, "RUNNING on frozen poses", self._pose.way)
        for name, view in self._views.items():
            if view.answers < after + 2 or name not in self._since or len(self._positions) < 2:
                continue
            moved = min(float(np.abs(now - self._since[name]).max()) for now in self._positions)
            require(moved <= 1.05 * watch.frozen_motion, "RUNNING on a frozen view", (name, moved))

    def _judge_twist(self, twist: Array, driven: bool) -> None:
        """Limits on its change while the policy drives; a ramp only falls, and ends."""
        (older, _), (old, drove) = self._twists[-2], self._twists[-1]
        limits, period = self._setup.limits, self._contract.period
        if driven:
            change = twist - old
            box = limits.workspace_low is not None
            if box:  # a wall stops the arm at once
                toward_zero = (np.sign(twist) * np.sign(old) >= 0) & (np.abs(twist) <= np.abs(old))
                change[:3][toward_zero[:3]] = 0.0
            if limits.acceleration is not None:
                most = np.array(limits.acceleration) * period
                within("the velocity changes faster than the acceleration limit", change, most, 1e-5)
            if limits.jerk is not None and not box and drove:
                before = old - older if self._twists[-2][1] else None
                if before is not None:
                    most = np.array(limits.jerk) * period * period
                    within("the acceleration changes faster than the jerk limit", change - before, most, 1e-5)
            self._ramping = 0
        else:
            within("a ramp to a halt speeds up", twist, np.abs(old), 1e-6)
            self._ramping += 1
            late = self._ramping >= self._setup.ramp and bool(twist.any())
            require(not late, "a ramp to a halt takes too long", (self._ramping, self._setup.ramp))
        self._twists.append((twist, driven))

    def _judge_target(self, target: Any, values: Array | None, action: Any, status: Any) -> None:
        """At most one action ahead of the arm; and where ~/action says, but for the walls."""
        place, turn = target.pose.position, target.pose.orientation
        wanted = np.array([place.x, place.y, place.z])
        rotation = _matrix(np.array([turn.w, turn.x, turn.y, turn.z]))
        answered = action is not None and len(action.sample) > 0
        poses = self._candidates(status, answered)
        require(bool(poses), "~/target_pose without a pose that it could be made of")
        scale = self._contract.action
        low, high = np.min([p.place for p in poses], axis=0), np.max([p.place for p in poses], axis=0)
        near(
            "~/target_pose is more than one action from the arm",
            wanted, low - scale.translation_scale, high + scale.translation_scale,
        )  # fmt: skip
        turns = [_vector(rotation @ pose.turn.T) for pose in poses]
        turned = turns[int(np.argmin([np.abs(v).max() for v in turns]))]
        within("~/target_pose is turned by more than one action", turned, np.full(3, scale.rotation_scale), 1e-4)
        if values is None:
            return
        least, greatest = low + scale.translation_scale * values[:3], high + scale.translation_scale * values[:3]
        limits = self._setup.limits
        if limits.workspace_low is not None and limits.workspace_high is not None:
            least = np.clip(least, limits.workspace_low, limits.workspace_high)
            greatest = np.clip(greatest, limits.workspace_low, limits.workspace_high)
        near("~/target_pose is not where ~/action points", wanted, least, greatest)
        meant = scale.rotation_scale * values[3:6]
        off = min(float(np.abs(v - meant).max()) for v in turns)
        spread = max(float(np.abs(_vector(a.turn @ b.turn.T)).max()) for a, b in itertools.product(poses[:1], poses))
        require(off <= 1e-4 + 2 * spread, "~/target_pose is not turned as ~/action says", (off, spread))

    def _judge_walls(self, values: Array, status: Any) -> None:
        """No motion outwards beyond a wall, or across it."""
        limits = self._setup.limits
        poses = self._candidates(status, True)
        if limits.workspace_low is None or limits.workspace_high is None or not poses:
            return
        least, greatest = np.min([p.place for p in poses], axis=0), np.max([p.place for p in poses], axis=0)
        scale = self._contract.action.translation_scale
        low = np.minimum((np.array(limits.workspace_low) - greatest) / scale, 0.0)
        high = np.maximum((np.array(limits.workspace_high) - least) / scale, 0.0)
        near("motion out of the workspace", values[:3], low, high)

    def _candidates(self, status: Any, answered: bool) -> list[_Pose]:
        """Poses that what is published now may be made of."""
        now = self._monotonic()
        age = POSE_AGE + (self._setup.watch.stale_after or 0.0)
        recent = [p for p in self._poses if now - p.arrived <= age] if not self._setup.lockstep else list(self._poses)
        stamp = status.header.stamp.sec * 10**9 + status.header.stamp.nanosec
        if now - self._odd_pose < ODD or not (answered or self._setup.lockstep) or not stamp:
            return recent
        close = [p for p in recent if abs(p.stamp - stamp) <= 25_000_000]
        before = max((p for p in recent if p.stamp <= stamp), key=lambda p: p.stamp, default=None)
        after = min((p for p in recent if p.stamp >= stamp), key=lambda p: p.stamp, default=None)
        return close + [p for p in (before, after) if p is not None]


def near(what: str, values: Array, low: Array, high: Array) -> None:
    """:class:`Violation` where ``values`` are not from ``low`` to ``high``, but for rounding."""
    if not (np.all(values >= low - 1e-5) and np.all(values <= high + 1e-5)):
        raise Violation(f"{what}: {values.tolist()}, {low.tolist()} to {high.tolist()}")


def within(what: str, values: Array, most: Array, rounding: float) -> None:
    """:class:`Violation` where the size of one of ``values`` is above its entry of ``most``, but for rounding."""
    if not np.all(np.abs(values) <= most * (1 + 1e-6) + rounding):
        raise Violation(f"{what}: {values.tolist()}, at most {most.tolist()}")


def _twist(message: Any) -> Array:
    linear, angular = message.twist.linear, message.twist.angular
    return np.array([linear.x, linear.y, linear.z, angular.x, angular.y, angular.z])


def _matrix(quaternion: Array) -> Array:
    """The rotation (3, 3) of a quaternion (w, x, y, z)."""
    w, x, y, z = (quaternion / np.linalg.norm(quaternion)).tolist()
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def _vector(matrix: Array) -> Array:
    """The rotation vector (3,) in rad of a matrix that turns by less than pi."""
    axis = np.array([matrix[2, 1] - matrix[1, 2], matrix[0, 2] - matrix[2, 0], matrix[1, 0] - matrix[0, 1]]) / 2
    sine, cosine = float(np.linalg.norm(axis)), (float(np.trace(matrix)) - 1) / 2
    return axis * (math.atan2(sine, cosine) / sine) if sine > 1e-9 else axis
