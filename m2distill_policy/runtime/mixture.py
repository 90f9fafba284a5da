"""The policy's answer, a Gaussian mixture over actions, and three ways of sampling an action from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.errors import ConfigError, M2DistillError, closest

Sampling = Literal["sample", "low_noise", "mode"]
SAMPLINGS: tuple[str, ...] = get_args(Sampling)
#: Standard deviation with ``low_noise``, as in LIBERO's ``low_eval_noise``.
LOW_NOISE_STD = 1e-4


class PolicyOutputError(M2DistillError):
    """The network's answer cannot be used: it is not finite, or a standard deviation is not positive."""


@dataclass(frozen=True)
class Mixture:
    """A mixture of M Gaussians with diagonal covariance over an action of A entries in [-1, 1].

    Attributes:
        logits: (M,) unnormalised log weights.
        means: (M, A) means, in the action's units.
        scales: (M, A) standard deviations, positive.
    """

    logits: NDArray[np.floating[Any]]
    means: NDArray[np.floating[Any]]
    scales: NDArray[np.floating[Any]]

    def check(self) -> None:
        """Check shapes and values.

        Raises:
            PolicyOutputError: Shapes do not fit, a value is not finite, or a scale is not positive.
        """
        if self.logits.ndim != 1 or self.means.shape != self.scales.shape or self.means.shape[:1] != self.logits.shape:
            raise PolicyOutputError(
                f"the mixture has logits {self.logits.shape}, means {self.means.shape} and scales {self.scales.shape}; "
                "(M,), (M, A) and (M, A) are needed"
            )
        # A sum is almost always finite if its terms are, and takes half the time of checking each term.
        total = self.logits.sum(dtype=np.float64) + self.means.sum(dtype=np.float64) + self.scales.sum(dtype=np.float64)
        if math.isfinite(total) and self.scales.min() > 0:
            return
        for name, values in (("logits", self.logits), ("means", self.means), ("scales", self.scales)):
            if not np.isfinite(values).all():
                raise PolicyOutputError(f"the network's {name} are not finite; load another bundle")
        if not (self.scales > 0).all():
            raise PolicyOutputError(
                f"the network's smallest standard deviation is {float(self.scales.min()):.3g}; "
                "it must be positive; load another bundle"
            )

    def weights(self) -> NDArray[np.float64]:
        """Return the weights (M,) of the components, whose sum is 1."""
        return _softmax(np.asarray(self.logits, dtype=np.float64))

    def log_prob(self, action: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Return the log density (...,) of actions (..., A)."""
        point = np.asarray(action, dtype=np.float64)[..., None, :]
        scales = np.asarray(self.scales, dtype=np.float64)
        z = (point - self.means) / scales
        logits = np.asarray(self.logits, dtype=np.float64)
        log_weights = logits - _log_sum_exp(logits)
        component = (-0.5 * z**2 - np.log(scales) - 0.5 * math.log(2 * math.pi)).sum(-1) + log_weights
        return _log_sum_exp(component)

    def mode(self) -> NDArray[np.float64]:
        """Return the mean (A,) of the component with the largest weight.

        It is not the component with the highest density: with a standard deviation of 1e-4, a component of very small
        weight can have the highest peak.
        """
        return np.asarray(self.means[int(np.argmax(self.logits))], dtype=np.float64)

    def sample(self, sampling: str, rng: np.random.Generator, temperature: float = 1.0) -> NDArray[np.float64]:
        """Sample one action (A,). It is not clipped.

        Args:
            sampling: ``sample`` samples from the mixture. ``low_noise`` samples a component by its weight, and then
                samples from this component with a standard deviation of 1e-4, as LIBERO does in evaluation. ``mode``
                returns :meth:`mode` and uses no random number.
            rng: Source of random numbers.
            temperature: For ``sample``: multiplies the standard deviations and divides the logits. 1 is the mixture
                itself; towards 0 it becomes the mode.

        Raises:
            ConfigError: ``sampling`` or ``temperature`` is not allowed.
        """
        if sampling == "mode":
            return self.mode()
        check_sampling(sampling, temperature)
        logits = np.asarray(self.logits, dtype=np.float64)
        weights = _softmax(logits / temperature if sampling == "sample" else logits)
        # The same random numbers for every mixture: one uniform for the component, then A normals.
        component = min(int(np.searchsorted(np.cumsum(weights), rng.random(), side="right")), weights.size - 1)
        noise = rng.standard_normal(self.means.shape[1])
        scale = self.scales[component].astype(np.float64) * temperature if sampling == "sample" else LOW_NOISE_STD
        return self.means[component].astype(np.float64) + scale * noise


def check_sampling(sampling: str, temperature: float = 1.0) -> None:
    """Check a way of sampling and its temperature.

    Raises:
        ConfigError: ``sampling`` is unknown, or ``temperature`` is not positive.
    """
    if sampling not in SAMPLINGS:
        raise ConfigError(
            f"sampling '{sampling}' is unknown; choose one of {list(SAMPLINGS)}{closest(sampling, SAMPLINGS)}"
        )
    if not (math.isfinite(temperature) and temperature > 0):
        raise ConfigError(f"sampling temperature is {temperature}; it must be positive")


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = np.exp(logits - logits.max())
    return np.asarray(shifted / shifted.sum(), dtype=np.float64)


def _log_sum_exp(values: NDArray[np.float64]) -> NDArray[np.float64]:
    top = values.max(axis=-1, keepdims=True)
    return np.asarray(np.log(np.exp(values - top).sum(axis=-1)) + top[..., 0], dtype=np.float64)
