"""Play a recording through the observation stream, in the order and at the times of its messages."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.contract import Contract
from m2distill_policy.errors import ObservationError, RecordingError
from m2distill_policy.images.encodings import compressed_to_rgb, raw_to_rgb
from m2distill_policy.node.arrivals import Moment
from m2distill_policy.node.stream import ObservationStream
from m2distill_policy.observation import Observation
from m2distill_policy.recordings.bag import Bag, Message
from m2distill_policy.recordings.import_settings import COMPRESSED

#: Largest gap between two observations, in control periods. Above it a recording is refused, because a policy would
#: have cleared its window.
LONGEST_GAP = 5.0


@dataclass(frozen=True)
class Step:
    """An observation. at: Time of recording (ns) at which a policy would have used the observation."""

    at: int
    observation: Observation


def message_to_rgb(message: Message) -> NDArray[np.uint8]:
    """Return the image of an Image or CompressedImage message as uint8 (H, W, 3), RGB."""
    content = message.content
    if message.kind == COMPRESSED:
        return compressed_to_rgb(content.format, np.asarray(content.data, dtype=np.uint8))
    return raw_to_rgb(content.encoding, content.height, content.width, content.step, np.asarray(content.data, np.uint8))


class Playback:
    """Playback of a recording: it runs the cycles of an observation stream at the times of the recording."""

    def __init__(self, bag: Bag, contract: Contract, stream: ObservationStream[Message]) -> None:
        self._bag, self._contract, self._stream = bag, contract, stream
        self._began: int | None = None
        self._newest = 0
        self._longest = LONGEST_GAP * contract.period
        self.steps: list[Step] = []
        self.missed = 0

    def advance(self, until: int) -> bool:
        """Run the cycles that are due before ``until`` (ns), the time at which the next message was recorded.

        Returns:
            Whether the recording starts anew here. It does after a long gap before the first observation, because the
            computer's clock may have been set in that gap.
        """
        first, gap = self._began is None, (until - self._newest) / 1e9
        self._newest = until
        if first or (not self.steps and gap > self._longest):
            self._began = until
            self._stream.restart(0.0)
            return not first
        end = self._seconds(until)
        jump = end - self._longest if gap > 2 * self._longest else -math.inf
        while (at := self._stream.wake) < end:
            if at > end - gap + self._longest and at < jump:
                # In such a long gap no observation is possible, so the rest of it is skipped.
                self.missed += round((jump - at) / self._contract.period) if self.steps else 0
                at = jump
            if not self._take(at) and self._stream.missed(at) and self.steps:
                self.missed += 1
        return False

    def moment(self, received: int) -> Moment:
        """Return the time of arrival, for the stream, of a message that was recorded at ``received`` (ns)."""
        return Moment(received, self._seconds(received))

    def run(self, now: int) -> None:
        """Run a cycle at ``now`` (ns) if the message that has just arrived completes an observation."""
        self._take(self._seconds(now))

    def _seconds(self, at: int) -> float:
        assert self._began is not None
        return (at - self._began) / 1e9

    def _take(self, at: float) -> bool:
        found = self._stream.due(at)
        if found is None:
            return False
        observation, problems = self._stream.observe(found)
        try:
            if not problems:
                observation.check(self._contract)
        except ObservationError as error:
            problems = [str(error)]
        if problems:
            raise RecordingError(
                f"{self._bag.path}: the observation stamped {found.stamp / 1e9:.3f} s cannot be used: "
                + " ".join(problems)
            )
        assert self._began is not None
        if self.steps:
            _require_no_gap(self._bag, self._contract, self.steps[-1].observation.stamp, observation.stamp)
        self.steps.append(Step(self._began + round(at * 1e9), observation))
        return True


def _require_no_gap(bag: Bag, contract: Contract, last: float, stamp: float) -> None:
    gap = stamp - last
    if gap <= 0:
        raise RecordingError(
            f"{bag.path}: stamps go from {last:.3f} to {stamp:.3f} s; a clock was changed or a "
            "camera repeats itself, record again"
        )
    if gap > LONGEST_GAP * contract.period:
        raise RecordingError(
            f"{bag.path}: no observation for {gap:.2f} s after {last:.3f} s; at most "
            f"{LONGEST_GAP * contract.period:g} s is allowed, record again"
        )
