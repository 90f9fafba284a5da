"""What the policy remembers within an episode: tokens of earlier steps, and the observations they came from."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.observation import Observation

#: Two stamps that are farther apart than this many periods do not belong to one window.
LARGEST_GAP = 1.5


class TokenWindow:
    """Tokens of up to ``history - 1`` earlier steps, right-aligned, in the buffer that the network reads.

    Attributes:
        past_tokens: (1, history - 1, tokens, embed) float32; the newest earlier step is last.
        past_count: (1,) int64, number of earlier steps.

    Both arrays are updated in place and never replaced, so the engine needs no copy.
    """

    def __init__(self, history: int, tokens: int, embed: int) -> None:
        self.past_tokens: NDArray[np.float32] = np.zeros((1, history - 1, tokens, embed), dtype=np.float32)
        self.past_count: NDArray[np.int64] = np.zeros(1, dtype=np.int64)

    @property
    def count(self) -> int:
        """Number of earlier steps in the window, 0 to history - 1."""
        return int(self.past_count[0])

    def push(self, tokens: NDArray[np.float32]) -> None:
        """Append one step's tokens (1, tokens, embed). A full window drops the oldest step."""
        past = self.past_tokens[0]
        if not len(past):
            return
        past[:-1] = past[1:]
        past[-1] = tokens[0]
        self.past_count[0] = min(self.count + 1, len(past))

    def clear(self) -> None:
        """Remove every step."""
        self.past_tokens.fill(0.0)
        self.past_count[0] = 0


@dataclass(frozen=True)
class RawStep:
    """One answered observation at the network's resolution. ``number`` counts all answered steps, from 1."""

    number: int
    observation: Observation


class RawHistory:
    """Copies of the last ``history`` observations, with which the window of a new network is filled.

    ``generation`` is increased whenever the window is cleared. Steps of different generations are never in one window.
    """

    def __init__(self, history: int, period: float) -> None:
        self.generation = 0
        self.cleared_because = "start"
        self._period = period
        self._steps: deque[RawStep] = deque(maxlen=history)
        self._answered = 0

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[RawStep]:
        return iter(self._steps)

    @property
    def newest(self) -> int:
        """Number of the newest step of this generation; 0 when there is none."""
        return self._steps[-1].number if self._steps else 0

    @property
    def last_stamp(self) -> float | None:
        """Stamp (s) of the newest step of this generation, or None."""
        return self._steps[-1].observation.stamp if self._steps else None

    def gap(self, stamp: float) -> bool:
        """Return whether ``stamp`` (s) is more than 1.5 periods after the newest step, so that the window ends."""
        last = self.last_stamp
        # With the tolerance, a gap of exactly 1.5 periods is allowed: stamps are sums of periods such as 0.05 s, which
        # round.
        return last is not None and stamp - last > LARGEST_GAP * self._period + 1e-9

    def push(self, observation: Observation) -> None:
        """Append a copy of ``observation``; the caller may reuse its arrays."""
        self._answered += 1
        copy = Observation(
            images={name: frame.copy() for name, frame in observation.images.items()},
            proprioception={name: values.copy() for name, values in observation.proprioception.items()},
            stamp=observation.stamp,
        )
        self._steps.append(RawStep(self._answered, copy))

    def clear(self, reason: str) -> None:
        """Remove every step and begin a new generation. ``reason`` is reported in the status."""
        self._steps.clear()
        self.generation += 1
        self.cleared_because = reason

    def snapshot(self) -> tuple[int, tuple[RawStep, ...]]:
        """Return the generation and its steps, the oldest first."""
        return self.generation, tuple(self._steps)
