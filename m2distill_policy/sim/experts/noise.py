"""Noise on the actions of an expert, so that its demonstrations show how to recover."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Noise:
    """Noise on the executed actions.

    The stored actions are those of the expert without noise, so demonstrations show how to recover.

    A *push* replaces the translation of the expert's action for 3 to 8 steps and moves the hand in a random direction.
    Without pushes, the past motion of the arm reveals the target. A network then learns to continue the motion, and
    ignores the instruction ("copycat problem", de Haan et al. 2019,
    https://arxiv.org/abs/1905.11979; noise in demonstrations: Laskey et al. 2017, https://arxiv.org/abs/1703.09327).

    Attributes:
        translation: Standard deviation of the translation noise, in action units.
        rotation: Standard deviation of the rotation noise, in action units.
        correlation: Correlation of the noise of two successive steps, 0 to 1.
        push: Horizontal length of a push in each step, in action units.
        first_push: Probability of a push at the first step.
        push_rate: Probability of a push at each later step. Pushes happen only while ``Target.can_push`` is true.
    """

    translation: float = 0.18
    rotation: float = 0.04
    correlation: float = 0.6
    push: float = 0.8
    first_push: float = 0.6
    push_rate: float = 0.06

    def scaled(self, factor: float) -> Noise:
        """Return noise with ``factor`` times the strength; a push is at most 1."""
        return replace(
            self,
            translation=self.translation * factor,
            rotation=self.rotation * factor,
            push=min(1.0, self.push * factor),
        )


class NoiseSource:
    """Sampler of the noise and the pushes of one episode. The noise is a first-order autoregressive process.

    Args:
        noise: Parameters of the noise.
        seed: Random seed. The strength of the noise in this episode is also sampled from it.
    """

    def __init__(self, noise: Noise, seed: int) -> None:
        self._rng = np.random.default_rng([77, seed])
        # The strength differs between episodes: some have nearly no noise, others much.
        strength = self._rng.uniform(0.2, 1.2)
        self._scale = strength * np.array([noise.translation] * 3 + [noise.rotation] * 3)
        self._noise = noise
        self._value = np.zeros(6)
        self._chance = noise.first_push
        self._push, self._push_steps = np.zeros(3), 0

    def disturb(self, action: NDArray[np.float64], can_push: bool, share: float = 1.0) -> NDArray[np.float64]:
        """Return the executed action of the next step.

        Args:
            action: The expert's action (7,).
            can_push: Whether a push may happen.
            share: Share of the noise that is applied, 0 to 1.

        Returns:
            The executed action (7,) in [-1, 1].
        """
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
            if can_push:
                executed[:3] = self._push
        executed[:6] = np.clip(executed[:6] + share * self._value, -1.0, 1.0)
        return executed
