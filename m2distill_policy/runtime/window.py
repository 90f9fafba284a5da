"""What the policy remembers within an episode: the tokens of earlier steps, and the raw steps they came from."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.observation import Observation

#: Two stamps further apart than this many periods do not belong to one window.
LARGEST_GAP = 1.5


class TokenWindow:
    """Tokens of up to ``history - 1`` earlier steps, right-aligned, in the one buffer that the network reads.

    ``past_tokens``: (1, history - 1, tokens, embed) float32; the newest earlier step is last. ``past_count``: (1,)
    int64. Both are updated in place and never replaced, so that they can be handed to the engine without a copy.
    """

    def __init__(self, history: int, tokens: int, embed: int) -> None:
        self.past_tokens: NDArray[np.float32] = np.zeros((1, history - 1, tokens, embed), dtype=np.float32)
        self.past_count: NDArray[np.int64] = np.zeros(1, dtype=np.int64)

    @property
    def count(self) -> int:
        """How many earlier steps are kept: 0..history - 1."""
        return int(self.past_count[0])

    def push(self, tokens: NDArray[np.float32]) -> None:
        """Append one step's tokens (1, tokens, embed); the oldest one falls out when the window is full."""
        past = self.past_tokens[0]
        if not len(past):
            return
        past[:-1] = past[1:]
        past[-1] = tokens[0]
        self.past_count[0] = min(self.count + 1, len(past))

    def clear(self) -> None:
        """Forget every step."""
        self.past_tokens.fill(0.0)
        self.past_count[0] = 0


@dataclass(frozen=True)
class RawStep:
    """One step as it was seen, at the network's resolution. ``number`` counts all steps ever answered, from 1."""

    number: int
    observation: Observation


class RawHistory:
    """The last ``history`` observations (copies), so that a new network can be fed what the present one has seen.

    ``generation`` grows whenever the window is cleared: steps of different generations never meet in one window.
    ``last_stamp`` is the stamp (s) of the newest step of this generation, or None.
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
        """Stamp (s) of the newest step of this generation."""
        return self._steps[-1].observation.stamp if self._steps else None

    def gap(self, stamp: float) -> bool:
        """Whether ``stamp`` (s) is too far from the newest step to continue its window: over 1.5 periods."""
        last = self.last_stamp
        # A hair of tolerance: stamps are sums of 0.05, and 1.5 periods exactly is still allowed.
        return last is not None and stamp - last > LARGEST_GAP * self._period + 1e-9

    def push(self, observation: Observation) -> None:
        """Keep a copy of ``observation``: whoever handed it in may reuse its arrays."""
        self._answered += 1
        copy = Observation(
            images={name: frame.copy() for name, frame in observation.images.items()},
            proprioception={name: values.copy() for name, values in observation.proprioception.items()},
            stamp=observation.stamp,
        )
        self._steps.append(RawStep(self._answered, copy))

    def clear(self, reason: str) -> None:
        """Forget every step and begin a new generation; ``reason`` is kept for the status."""
        self._steps.clear()
        self.generation += 1
        self.cleared_because = reason

    def snapshot(self) -> tuple[int, tuple[RawStep, ...]]:
        """(generation, the kept steps from the oldest to the newest)."""
        return self.generation, tuple(self._steps)
