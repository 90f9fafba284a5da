"""Check whether an observation may be used: stamps, timeouts and frozen images."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.contract import Contract
from m2distill_policy.errors import ObservationError
from m2distill_policy.observation import Observation
from m2distill_policy.ranges import require_within
from m2distill_policy.runtime.run_timeout import LONGEST_ANSWER
from m2distill_policy.runtime.status import StatusCode

#: Smallest and largest value of each limit, and its unit.
WATCH_RANGES: Mapping[str, tuple[float, float, str]] = {
    "stale_after": (1e-3, 3600.0, "s"),
    "silent_after": (1e-3, 3600.0, "s"),
    "future_tolerance": (1e-3, 3600.0, "s"),
    "frozen_after": (2, 10**6, "steps"),
    "frozen_motion": (1e-6, 100.0, "rad or m"),
    "dead_man": (1e-3, 3600.0, "s"),
    "overruns_in_a_row": (1, 10**6, "decisions"),
}
#: Number of different images of a view with which the next one is compared, because a dead driver may repeat a ring of
#: old buffers. Of large images fewer are kept, to limit the bytes.
IMAGES_KEPT, _BYTES_KEPT = 8, 1 << 26


@dataclass(frozen=True)
class WatchLimits:
    """Limits for late, early, missing and frozen observations; None switches a check off.

    Attributes:
        stale_after: Largest age of an observation's stamp, s.
        silent_after: Longest time without an observation, s; then the arm halts.
        future_tolerance: Largest lead of a stamp over the current time, s.
        frozen_after: Number of steps after which something that does not change counts as frozen: a view, if a joint
            moved by more than ``frozen_motion`` in these steps; the joints or the pose, if so many commands should have
            moved the arm by more than ``frozen_motion`` in total.
        frozen_motion: Motion in rad or m, see ``frozen_after``.
        dead_man: Longest time without a message that the dead-man switch is held, s; None needs no switch.
        overruns_in_a_row: Number of decisions in a row that take longer than a period, after which the arm is halted
            until the policy is enabled again.
    """

    stale_after: float | None = 0.2
    silent_after: float | None = 0.15
    future_tolerance: float | None = 0.1
    frozen_after: int | None = 10
    frozen_motion: float = 0.02
    dead_man: float | None = None
    overruns_in_a_row: int | None = 3

    def __post_init__(self) -> None:
        for name, (low, high, unit) in WATCH_RANGES.items():
            value = getattr(self, name)
            if value is not None:
                require_within(f"watchdog limit '{name}'", value, low, high, unit)

    def longest_answer(self, period: float) -> float:
        """Return the seconds after which an answer of the network is aborted.

        While the network computes, only the arm's own driver can stop the arm. So in real time the limit is ten
        periods, at least 0.5 s. In lockstep it is longer.
        """
        if self.silent_after is None:
            return LONGEST_ANSWER
        return min(LONGEST_ANSWER, max(0.5, 10 * period))

    @staticmethod
    def lockstep() -> WatchLimits:
        """Make limits for lockstep: there is no clock to compare with, and an unchanged image is not a fault."""
        return WatchLimits(
            stale_after=None, silent_after=None, future_tolerance=None, frozen_after=None, overruns_in_a_row=None
        )


@dataclass(frozen=True)
class Fault:
    """The reason why no command is sent in a control cycle: a status code and its message."""

    code: StatusCode
    message: str


class Watchdog:
    """Checks each observation when it arrives. Time is an argument.

    ``now`` is in the clock of the stamps (ROS time or simulated time). ``monotonic`` is monotonic time.
    """

    def __init__(self, contract: Contract, limits: WatchLimits) -> None:
        self.limits = limits
        self._contract = contract
        self._held_at: float | None = None
        self._let_go = False
        self.reset()

    def reset(self) -> None:
        """Begin an episode: forget earlier stamps and images."""
        self._last_stamp: float | None = None
        self._last_arrival: float | None = None
        self._first_tick: float | None = None
        self._same_image: dict[str, int] = {}
        #: The newest images of each view that differ from one another, as bytes.
        self._shown: dict[str, deque[bytes]] = {
            camera.name: deque(maxlen=max(1, min(IMAGES_KEPT, _BYTES_KEPT // math.prod(camera.shape))))
            for camera in self._contract.cameras
        }
        self._moved_from: dict[str, dict[str, NDArray[np.float32]]] = {}

    def set_dead_man(self, held: bool, monotonic: float) -> None:
        """Set whether the dead-man switch is held, at ``monotonic`` (s)."""
        self._held_at = monotonic if held else None
        self._let_go = not held

    def check_deadman(self, monotonic: float) -> Fault | None:
        """Return the fault of the dead-man switch; None if it is held, or if no switch is needed."""
        longest = self.limits.dead_man
        if longest is None:
            return None
        if self._held_at is None:
            why = "was released" if self._let_go else "has sent nothing yet"
        elif monotonic - self._held_at > longest + 1e-9:
            why = f"has sent nothing for {monotonic - self._held_at:.3f} s (at most {longest:g} s is allowed)"
        else:
            return None
        return Fault(StatusCode.DEAD_MAN, f"The dead-man switch {why}; hold it to go on.")

    def check_observation(self, observation: Observation, now: float, monotonic: float) -> Fault | None:
        """Return the first fault of ``observation``, or None.

        Its stamp and images are compared with those of earlier calls.
        """
        limits, stamp = self.limits, observation.stamp
        self._last_arrival = monotonic
        if not math.isfinite(stamp):
            return Fault(StatusCode.BAD_OBSERVATION, f"The observation's stamp is {stamp}; it must be finite (s).")
        last, self._last_stamp = self._last_stamp, stamp
        try:
            observation.check(self._contract)
        except ObservationError as error:
            self._clear_images()
            return Fault(StatusCode.BAD_OBSERVATION, f"The observation cannot be used: {error}.")
        frozen = self._frozen(observation)
        # Compared with the last stamp, whether it was accepted or not: after a clock was set back once, later stamps
        # are in order again.
        if last is not None and stamp == last:
            return Fault(
                StatusCode.REPEATED_STAMP,
                f"Two observations have the stamp {stamp:.3f} s: a camera or driver repeats messages; restart it.",
            )
        if last is not None and stamp < last:
            return Fault(
                StatusCode.OUT_OF_ORDER,
                f"The observation's stamp {stamp:.3f} s is {last - stamp:.3f} s before that of the observation before; "
                "a clock was set back, or messages arrived in the wrong order.",
            )
        if limits.future_tolerance is not None and stamp - now > limits.future_tolerance:
            return Fault(
                StatusCode.FUTURE_STAMP,
                f"The observation's stamp is {stamp - now:.3f} s in the future; at most {limits.future_tolerance:g} s "
                "is allowed: synchronise the clocks of the machines.",
            )
        return self.check_age(stamp, now) or frozen

    def check_age(self, stamp: float, now: float) -> Fault | None:
        """Return the fault if ``stamp`` is too old at ``now``, else None.

        It is checked when an observation arrives, and again once the observation is answered.
        """
        longest = self.limits.stale_after
        if longest is None or now - stamp <= longest:
            return None
        return Fault(
            StatusCode.STALE_OBSERVATION,
            f"The observation is {now - stamp:.3f} s old; at most {longest:g} s is allowed.",
        )

    def check_timeout(self, monotonic: float, why: Callable[[], Fault | None] | None = None) -> Fault:
        """Check a cycle without an observation.

        Args:
            monotonic: Current time, s.
            why: Called on a timeout; returns the fault of the streams. Without it, or if it returns None, the fault is
                ``MISSING_OBSERVATION``.

        Returns:
            ``WAITING``, or a fault after a timeout.
        """
        if self._first_tick is None:
            self._first_tick = monotonic
        since = monotonic - (self._last_arrival if self._last_arrival is not None else self._first_tick)
        if self.limits.silent_after is None or since <= self.limits.silent_after + 1e-9:
            return Fault(StatusCode.WAITING, f"Waiting for the next observation since {max(since, 0.0):.3f} s.")
        reason = why() if why is not None else None
        if reason is not None:
            return Fault(
                reason.code,
                f"No observation for {since:.3f} s; at most {self.limits.silent_after:g} s is allowed: "
                f"{reason.message}",
            )
        wanted = ", ".join((*self._contract.camera_names, *self._contract.proprioception_names))
        return Fault(
            StatusCode.MISSING_OBSERVATION,
            f"No observation for {since:.3f} s; at most {self.limits.silent_after:g} s is allowed: "
            f"check that all of {wanted} are published.",
        )

    def check_frozen(self, observation: Observation) -> Fault | None:
        """Return the fault if a view is frozen. For recordings, whose clocks are checked elsewhere.

        Call this or :meth:`check_observation` once for each observation.
        """
        return self._frozen(observation)

    def _clear_images(self) -> None:
        for shown in self._shown.values():
            shown.clear()

    def _frozen(self, observation: Observation) -> Fault | None:
        if self.limits.frozen_after is None:
            return None
        # Copies of the bytes are compared, because a driver may fill the same buffer again. Different images mostly
        # differ in their first bytes, so a comparison is quick.
        for name in self._contract.camera_names:
            image = observation.images[name].tobytes()
            shown = self._shown[name]
            if image not in shown:
                shown.append(image)
                self._same_image[name] = 1
                self._moved_from[name] = {g: v.copy() for g, v in observation.proprioception.items()}
                continue
            self._same_image[name] += 1
            if self._same_image[name] < self.limits.frozen_after:
                continue
            start = self._moved_from[name]
            motion = max(float(np.abs(v - start[g]).max()) for g, v in observation.proprioception.items() if g in start)
            if motion > self.limits.frozen_motion:
                return Fault(
                    StatusCode.FROZEN_VIEW,
                    f"View '{name}' had no new image for {self._same_image[name]} steps while the arm moved "
                    f"by {motion:.3f}; restart the camera.",
                )
        return None
