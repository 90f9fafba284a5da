"""Could the end effector be there? A pose that it cannot have reached since the last one is not used."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.node.frames import FrameCheck

#: m from the frame's origin that no arm reaches.
FARTHEST = 5.0
#: m/s and rad/s that any arm may do, also when it is led by hand; and how much faster than its own limit it may be.
ALWAYS_POSSIBLE, ABOVE_LIMIT = (1.0, 5.0), 2.0
#: m and rad by which two poses may differ whatever the time between them.
NOISE = (0.05, 0.2)
#: s by which poses may arrive later than the ones before them did.
_DELAY = 0.25
#: s, and poses, for which poses must agree with each other before they count in spite of a jump.
SETTLED, SETTLED_POSES = 0.5, 5


@dataclass(frozen=True)
class Measured:
    """A pose (6,), its stamp in ns, when it arrived (s, monotonic), and the name of its frame, empty if unknown."""

    stamp: int
    arrived: float
    value: NDArray[np.float64]
    frame: str = ""


class PoseGate:
    """Judges each pose as it comes.

    Poses that jump, and then agree with each other for 0.5 s, count again: the arm was moved, or the measurement was.
    Nobody can tell from the poses, so :meth:`take_jump` says it once, and whoever drives the arm must stop it.

    Args:
        speeds: (6,) m/s and rad/s, the limit of the arm's commands.
        jumps: whether jumps are judged; a simulated robot resets its arm.
        frame: the frame that poses must be in; empty where it must only stay the same.
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
        """Forget what has come: the next pose is compared with nothing."""
        self._last: Measured | None = None
        #: The first and the newest of the poses that agree with each other and not with the last one, and their number.
        self._other: tuple[Measured, Measured, int] | None = None
        self._jump: str | None = None
        self._frames.clear()

    @property
    def frame(self) -> str:
        """The frame that the poses name; empty where none does."""
        return self._frames.frame

    def problem(self, pose: Measured) -> str | None:
        """Why ``pose`` is not to be used; None where it is, and the next one is compared with it."""
        why = self._frames.problem(pose.frame) or impossible(pose.value)
        if why is not None or not self._jumps:
            return why
        if self._last is None:
            self._last = pose
            return None
        off = self._share(self._last, pose)
        off_other = self._share(self._other[1], pose) if self._other is not None else math.inf
        # With time any jump could have been made; not one that the poses in between say was made at once.
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
        """Return the jump after which poses are accepted again, once; None where there was none."""
        jump, self._jump = self._jump, None
        return jump

    def _between(self, before: Measured, after: Measured) -> tuple[float, float, float, float, float]:
        """s between two poses; m and the most that is possible in that time; rad and the most."""
        time = min(abs(after.stamp - before.stamp) / 1e9, abs(after.arrived - before.arrived) + _DELAY)
        far = math.dist(before.value[:3].tolist(), after.value[:3].tolist())
        turned = angle_between(before.value[3:], after.value[3:])
        return time, far, NOISE[0] + self._fastest[0] * time, turned, NOISE[1] + self._fastest[1] * time

    def _share(self, before: Measured, after: Measured) -> float:
        """How much of what is possible the way between two poses takes: above 1 it is not possible."""
        _, far, most, turned, most_turned = self._between(before, after)
        return max(far / most, turned / most_turned)

    def _describe(self, before: Measured, after: Measured) -> str:
        time, far, most, turned, most_turned = self._between(before, after)
        if turned / most_turned > far / most:
            moved, possible = f"turned by {turned:.3g} rad", f"{most_turned:.3g} rad"
        else:
            moved, possible = f"{far:.3g} m away", f"{most:.3g} m"
        return f"it is {moved} from the one {time:.3f} s before; at most {possible} is possible, and not all at once"


def impossible(pose: NDArray[np.floating[Any]]) -> str | None:
    """Why no end effector can be at ``pose`` (6,), whatever was before; None where one can."""
    values = [float(v) for v in pose]
    if len(values) != 6 or not all(math.isfinite(v) for v in values):
        return "it holds a value that is not finite"
    if math.hypot(*values[:3]) > FARTHEST:
        return f"it is {math.hypot(*values[:3]):.3g} m from its frame's origin, and no arm reaches {FARTHEST:g} m"
    if math.hypot(*values[3:]) > 2 * math.pi + 1e-6:
        return f"its rotation vector is {math.hypot(*values[3:]):.3g} rad long, and at most 2 pi is possible"
    return None


def quaternion(rotation: NDArray[np.floating[Any]]) -> tuple[float, float, float, float]:
    """(w, x, y, z) of length 1 for a rotation vector (3,) in rad."""
    x, y, z = (float(v) for v in rotation)
    angle = math.sqrt(x * x + y * y + z * z)
    share = math.sin(angle / 2) / angle if angle > 1e-12 else 0.5
    return math.cos(angle / 2), x * share, y * share, z * share


def angle_between(a: NDArray[np.floating[Any]], b: NDArray[np.floating[Any]]) -> float:
    """Rad, 0 to pi, between two rotation vectors (3,)."""
    aw, ax, ay, az = quaternion(a)
    bw, bx, by, bz = quaternion(b)
    # The vector part of conj(a) b: near 0 its sine is exact where the cosine's inverse is not.
    x = aw * bx - ax * bw - ay * bz + az * by
    y = aw * by + ax * bz - ay * bw - az * bx
    z = aw * bz - ax * by + ay * bx - az * bw
    return 2 * math.atan2(math.sqrt(x * x + y * y + z * z), abs(aw * bw + ax * bx + ay * by + az * bz))


def between(before: Measured, after: Measured, stamp: int) -> NDArray[np.float64]:
    """The pose (6,) at ``stamp`` (ns) between two others: position linear, rotation the shorter way (slerp)."""
    share = (stamp - before.stamp) / (after.stamp - before.stamp)
    position = before.value[:3] + share * (after.value[:3] - before.value[:3])
    a, b = np.array(quaternion(before.value[3:])), np.array(quaternion(after.value[3:]))
    cosine = float(a @ b)
    if cosine < 0:
        b, cosine = -b, -cosine
    angle = math.atan2(float(np.linalg.norm(b - cosine * a)), cosine)
    if angle < 1e-9:
        w, *vector = (1 - share) * a + share * b
    else:
        w, *vector = (math.sin((1 - share) * angle) * a + math.sin(share * angle) * b) / math.sin(angle)
    if w < 0:
        w, vector = -w, [-v for v in vector]
    sine = math.hypot(*vector)
    factor = 2 * math.atan2(sine, w) / sine if sine > 1e-12 else 2.0
    return np.concatenate([position, np.array(vector) * factor])
