"""Disturbance of what an expert does, so that its demonstrations show how to recover."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Noise:
    """Disturbance of the executed action, drawn an episode: the label stays clean, so demonstrations show recovery.

    translation, rotation: standard deviation in action units; correlation: share kept from step to step.
    push: translation action of a push, which for 3 to 8 steps stands in the place of the expert's action and sends the
    hand anywhere; first_push, push_rate: chance of one at the first step and at any later one, while the open hand is
    high over the table. Without pushes the way that the arm has come gives the target away: a network learns to go on
    as it began, and nothing makes it look which object was named ("copycat", de Haan et al. 2019,
    https://arxiv.org/abs/1905.11979; disturbed demonstrations, Laskey et al. 2017, https://arxiv.org/abs/1703.09327).
    """

    translation: float = 0.18
    rotation: float = 0.04
    correlation: float = 0.6
    push: float = 0.8
    first_push: float = 0.6
    push_rate: float = 0.06

    def scaled(self, factor: float) -> Noise:
        """The same kind of disturbance, ``factor`` times as strong."""
        return replace(
            self,
            translation=self.translation * factor,
            rotation=self.rotation * factor,
            push=min(1.0, self.push * factor),
        )


class NoiseSource:
    """What is executed instead of the expert's action: first-order correlated noise on it, and pushes; from a seed."""

    def __init__(self, noise: Noise, seed: int) -> None:
        self._rng = np.random.default_rng([77, seed])
        # Some episodes are nearly clean, others rough.
        strength = self._rng.uniform(0.2, 1.2)
        self._scale = strength * np.array([noise.translation] * 3 + [noise.rotation] * 3)
        self._noise = noise
        self._value = np.zeros(6)
        self._chance = noise.first_push
        self._push, self._push_steps = np.zeros(3), 0

    def disturb(self, action: NDArray[np.float64], free: bool, share: float = 1.0) -> NDArray[np.float64]:
        """The next executed action (7,) in [-1, 1]; ``free``: the hand may be pushed here; ``share`` of the noise."""
        fresh = self._rng.normal(size=6) * self._scale
        kept = self._noise.correlation
        self._value = kept * self._value + np.sqrt(1.0 - kept**2) * fresh
        begins = self._rng.random() < self._chance
        self._chance = self._noise.push_rate
        if begins and self._push_steps == 0:
            angle = self._rng.uniform(0, 2 * np.pi)
            self._push = self._noise.push * np.array([np.cos(angle), np.sin(angle), self._rng.uniform(-0.2, 0.4)])
            self._push_steps = int(self._rng.integers(3, 9))
        executed = action.copy()
        if self._push_steps > 0:
            self._push_steps -= 1
            if free:
                executed[:3] = self._push
        executed[:6] = np.clip(executed[:6] + share * self._value, -1.0, 1.0)
        return executed
