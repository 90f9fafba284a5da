"""Refuse poses of the end effector that are impossible, or that cannot have been reached since the last pose."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.node.frame_names import FrameCheck
from m2distill_policy.node.pose import pose_from, quaternion_of

#: Largest distance of an end effector from its frame's origin, m.
FARTHEST = 5.0
#: Speeds in m/s and rad/s that any arm may reach, also when it is guided by hand; and a factor by which an arm may
#: exceed its own limits.
ALWAYS_POSSIBLE, ABOVE_LIMIT = (1.0, 5.0), 2.0
#: Differences of two poses, in m and rad, that are always allowed.
NOISE = (0.05, 0.2)
#: Seconds by which a pose may arrive later than its stamp suggests.
_DELAY = 0.25
#: After a jump, poses must agree with each other for this number of seconds and of poses to be accepted.
SETTLED, SETTLED_POSES = 0.5, 5


@dataclass(frozen=True)
class Measured:
    """A pose (6,), its stamp in ns, when it arrived (s, monotonic), and the name of its frame, or ""."""

    stamp: int
    arrived: float
    value: NDArray[np.float64]
    frame: str = ""


class PoseGate:
    """Checks each pose when it arrives.

    If poses jump and then agree with each other for 0.5 s, they are accepted again: the arm was moved, or the
    measurement is wrong. The poses do not show which of the two happened. So :meth:`take_jump` reports the jump once,
    and the caller must halt the arm.

    Args:
        speeds: Limits (6,) of the arm's commands, m/s and rad/s.
        jumps: Whether to check for jumps; False for a simulated robot, which moves its arm when it is reset.
        frame: Required frame of poses; if empty, the frame must only stay the same.
    """

    def __init__(self, speeds: Sequence[float], *, jumps: bool = True, frame: str = "") -> None:
        self._jumps = jumps
        self._frames = FrameCheck(frame)
        self._fastest = tuple(
            max(always, ABOVE_LIMIT * math.sqrt(sum(v * v for v in part)))
            for always, part in zip(ALWAYS_POSSIBLE, (speeds[:3], speeds[3:6]), strict=True)
        )
        self.clear()

    def clear(self) -> None:
        """Forget the earlier poses."""
        self._last: Measured | None = None
        #: Poses that agree with each other but not with the last accepted pose: the first, the newest, and their
        #: number.
        self._other: tuple[Measured, Measured, int] | None = None
        self._jump: str | None = None
        self._frames.clear()

    @property
    def frame(self) -> str:
        """The frame of the accepted poses, or ""."""
        return self._frames.frame

    def problem(self, pose: Measured) -> str | None:
        """Return why ``pose`` must not be used, or None if it is accepted.

        The next pose is compared with the last accepted one.
        """
        why = self._frames.problem(pose.frame) or impossible(pose.value)
        if why is not None or not self._jumps:
            return why
        if self._last is None:
            self._last = pose
            return None
        off = self._share(self._last, pose)
        off_other = self._share(self._other[1], pose) if self._other is not None else math.inf
        # After a long time any motion is possible, unless the refused poses in between show that it was one jump.
        if off <= 1 and off <= off_other:
            self._last, self._other = pose, None
            return None
        why = self._describe(self._last, pose)
        first, _, count = self._other or (pose, pose, 0)
        if off_other > 1:
            first, count = pose, 0
        self._other = (first, pose, count + 1)
        if count + 1 < SETTLED_POSES or pose.arrived - first.arrived < SETTLED:
            return why
        self._last, self._other, self._jump = pose, None, why
        return None

    def take_jump(self) -> str | None:
        """Return the jump after which poses are accepted again, or None. Each jump is returned only once."""
        jump, self._jump = self._jump, None
        return jump

    def _between(self, before: Measured, after: Measured) -> tuple[float, float, float, float, float]:
        """Compare two poses.

        Returns:
            Seconds between them; their distance and the largest possible distance, m; the same two for the rotation,
            rad.
        """
        time = min(abs(after.stamp - before.stamp) / 1e9, abs(after.arrived - before.arrived) + _DELAY)
        far = math.dist(before.value[:3].tolist(), after.value[:3].tolist())
        turned = angle_between(before.value[3:], after.value[3:])
        return time, far, NOISE[0] + self._fastest[0] * time, turned, NOISE[1] + self._fastest[1] * time

    def _share(self, before: Measured, after: Measured) -> float:
        """Return the motion between two poses as a fraction of the largest possible one."""
        _, far, most, turned, most_turned = self._between(before, after)
        return max(far / most, turned / most_turned)

    def _describe(self, before: Measured, after: Measured) -> str:
        time, far, most, turned, most_turned = self._between(before, after)
        if turned / most_turned > far / most:
            moved, possible = f"turned by {turned:.3g} rad", f"{most_turned:.3g} rad"
        else:
            moved, possible = f"{far:.3g} m away", f"{most:.3g} m"
        return f"it is {moved} from the one {time:.3f} s before; at most {possible} is possible, and not in one step"


def impossible(pose: NDArray[np.floating[Any]]) -> str | None:
    """Return why no end effector can be at ``pose`` (6,), or None."""
    values = [float(v) for v in pose]
    if len(values) != 6 or not all(math.isfinite(v) for v in values):
        return "a value is not finite"
    if math.hypot(*values[:3]) > FARTHEST:
        return f"it is {math.hypot(*values[:3]):.3g} m from its frame's origin; at most {FARTHEST:g} m is possible"
    if math.hypot(*values[3:]) > 2 * math.pi + 1e-6:
        return f"its rotation vector is {math.hypot(*values[3:]):.3g} rad long; at most 2 pi is possible"
    return None


def angle_between(a: NDArray[np.floating[Any]], b: NDArray[np.floating[Any]]) -> float:
    """Return the angle between two rotation vectors (3,), 0 to pi rad."""
    ax, ay, az, aw = quaternion_of(a)
    bx, by, bz, bw = quaternion_of(b)
    # Computed from the vector part of conj(a) b, because near 0 the sine is accurate and the inverse cosine is not.
    x = aw * bx - ax * bw - ay * bz + az * by
    y = aw * by + ax * bz - ay * bw - az * bx
    z = aw * bz - ax * by + ay * bx - az * bw
    return 2 * math.atan2(math.sqrt(x * x + y * y + z * z), abs(aw * bw + ax * bx + ay * by + az * bz))


def between(before: Measured, after: Measured, stamp: int) -> NDArray[np.float64]:
    """Return the pose (6,) at ``stamp`` (ns) between two others: linear in position, slerp in rotation."""
    share = (stamp - before.stamp) / (after.stamp - before.stamp)
    position = before.value[:3] + share * (after.value[:3] - before.value[:3])
    a, b = np.array(quaternion_of(before.value[3:])), np.array(quaternion_of(after.value[3:]))
    cosine = float(a @ b)
    if cosine < 0:
        b, cosine = -b, -cosine
    angle = math.atan2(float(np.linalg.norm(b - cosine * a)), cosine)
    if angle < 1e-9:
        mixed = (1 - share) * a + share * b
    else:
        mixed = (math.sin((1 - share) * angle) * a + math.sin(share * angle) * b) / math.sin(angle)
    return pose_from(position.tolist(), mixed.tolist())
