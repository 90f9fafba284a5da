"""Sampling follows the mixture's closed form, and invalid mixtures are refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

from m2distill_policy.errors import ConfigError
from m2distill_policy.runtime.mixture import LOW_NOISE_STD, Mixture, PolicyOutputError

WEIGHTS = np.array([0.5, 0.3, 0.2])
MEANS = np.array([[-0.5, 0.2], [0.1, -0.3], [0.8, 0.9]], dtype=np.float32)
SCALES = np.array([[0.1, 0.3], [0.2, 0.05], [0.05, 0.1]], dtype=np.float32)
MIXTURE = Mixture((np.log(WEIGHTS) + 7.0).astype(np.float32), MEANS, SCALES)


def draws(sampling: str, count: int = 20_000, temperature: float = 1.0, mixture: Mixture = MIXTURE) -> np.ndarray:
    rng = np.random.default_rng(1)
    return np.array([mixture.sample(sampling, rng, temperature) for _ in range(count)])


def test_weights() -> None:
    assert np.allclose(MIXTURE.weights(), WEIGHTS, atol=1e-6)


def test_sample_has_the_mixtures_mean_and_covariance() -> None:
    samples = draws("sample")
    mean = WEIGHTS @ MEANS
    covariance = sum(
        w * (np.diag(s.astype(float) ** 2) + np.outer(m - mean, m - mean))
        for w, m, s in zip(WEIGHTS, MEANS, SCALES, strict=True)
    )
    error = np.sqrt(np.diag(covariance) / len(samples))
    assert np.all(np.abs(samples.mean(0) - mean) < 4 * error)
    assert np.allclose(np.cov(samples.T), covariance, atol=0.01)


def test_sample_has_the_mixtures_distribution() -> None:
    """Kolmogorov-Smirnov distance of the first entry to the closed form."""
    values = np.sort(draws("sample")[:, 0])
    cdf = sum(
        w * np.array([0.5 * math.erfc((m - v) / (s * math.sqrt(2))) for v in values])
        for w, m, s in zip(WEIGHTS, MEANS[:, 0].astype(float), SCALES[:, 0].astype(float), strict=True)
    )
    n = len(values)
    assert np.abs(cdf - (np.arange(n) + 0.5) / n).max() < 1.95 / math.sqrt(n)  # fails by chance once in 1,000


def test_temperature_sharpens() -> None:
    cold = draws("sample", 2_000, temperature=0.1)
    nearest = np.abs(cold[:, None] - MEANS[None]).sum(-1).argmin(1)
    weights = WEIGHTS**10 / (WEIGHTS**10).sum()
    assert abs((nearest == 0).mean() - weights[0]) < 0.02
    assert np.allclose(cold[nearest == 0].std(0), SCALES[0] * 0.1, rtol=0.1)


def test_low_noise_samples_components_by_weight_with_little_noise() -> None:
    samples = draws("low_noise")
    nearest = np.abs(samples[:, None] - MEANS[None]).sum(-1).argmin(1)
    shares = np.bincount(nearest, minlength=3) / len(samples)
    assert np.all(np.abs(shares - WEIGHTS) < 4 * np.sqrt(WEIGHTS * (1 - WEIGHTS) / len(samples)))
    noise = samples - MEANS[nearest]
    assert np.allclose(noise.std(0), LOW_NOISE_STD, rtol=0.03)
    assert np.abs(noise.mean(0)).max() < 4 * LOW_NOISE_STD / math.sqrt(len(samples))


def test_mode_is_the_mean_of_the_largest_weight_and_uses_no_random_number() -> None:
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    assert np.array_equal(MIXTURE.sample("mode", rng), MEANS[0].astype(np.float64))
    assert rng.bit_generator.state == before
    # A needle of next to no weight has the highest density, and is not what the policy means.
    needle = Mixture(np.log([0.999, 0.001]), np.array([[0.0], [1.0]]), np.array([[0.1], [1e-6]]))
    assert needle.log_prob(np.array([1.0])) > needle.log_prob(np.array([0.0]))
    assert needle.mode() == 0.0


def test_same_stream_same_actions() -> None:
    assert np.array_equal(draws("sample", 10), draws("sample", 10))


def test_log_prob_integrates_to_one_and_agrees_with_the_formula() -> None:
    axis = np.linspace(-3, 3, 601)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1)
    density = np.exp(MIXTURE.log_prob(grid))
    assert density.sum() * (axis[1] - axis[0]) ** 2 == pytest.approx(1.0, abs=1e-3)
    point = np.array([0.05, -0.2])
    direct = sum(
        w * np.prod(np.exp(-0.5 * ((point - m) / s) ** 2) / (s * math.sqrt(2 * math.pi)))
        for w, m, s in zip(WEIGHTS, MEANS.astype(float), SCALES.astype(float), strict=True)
    )
    assert float(MIXTURE.log_prob(point)) == pytest.approx(math.log(direct), abs=1e-5)


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        (Mixture(np.array([0.0, np.nan, 0.0]), MEANS, SCALES), "logits are not finite"),
        (Mixture(np.zeros(3), np.full((3, 2), np.inf), SCALES), "means are not finite"),
        (Mixture(np.zeros(3), MEANS, SCALES - 0.05), "smallest standard deviation is 0; it must be positive"),
        (Mixture(np.zeros(3), MEANS, -SCALES), "smallest standard deviation is -0.3"),
        (Mixture(np.zeros(2), MEANS, SCALES), r"has logits \(2,\), means \(3, 2\)"),
    ],
)
def test_invalid_mixtures_are_refused(mixture: Mixture, message: str) -> None:
    with pytest.raises(PolicyOutputError, match=message):
        mixture.check()


def test_good_answer_passes() -> None:
    MIXTURE.check()


def test_unknown_sampling_and_temperature() -> None:
    with pytest.raises(ConfigError, match=r"sampling 'samples' is unknown; .*did you mean 'sample'"):
        MIXTURE.sample("samples", np.random.default_rng(0))
    with pytest.raises(ConfigError, match="temperature is 0; it must be positive"):
        MIXTURE.sample("sample", np.random.default_rng(0), 0)
