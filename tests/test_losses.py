"""Each term is zero for equal networks, trains only what it should, and the Monte Carlo KL is the KL."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from tests.training_fixtures import CONTRACT, NETWORK
from training.losses import (
    behaviour_cloning,
    latent_distance,
    masked_mean,
    policy_divergence,
    reverse_divergence,
    subspace_distance,
)
from training.models.mixture import Mixture
from training.models.resnet_t import Inputs, Output, ResNetT


def network(seed: int) -> ResNetT:
    torch.manual_seed(seed)
    return ResNetT(NETWORK, CONTRACT).eval()


def inputs(batch: int = 2, length: int = 10) -> Inputs:
    generator = torch.Generator().manual_seed(5)
    return Inputs(
        {c.name: torch.rand(batch, length, 3, 32, 32, generator=generator) for c in CONTRACT.cameras},
        {g.name: torch.randn(batch, length, g.size, generator=generator) for g in CONTRACT.proprioception},
        torch.randn(batch, 12, generator=generator),
    )


TERMS = {
    "text": slice(0, 1),
    "extra": slice(1, 3),
    "image": slice(3, 5),
}


def term(name: str, teacher: Output, student: Output) -> torch.Tensor:
    valid = torch.ones(2, 10, dtype=torch.bool)
    if name == "policy":
        generator = torch.Generator().manual_seed(0)
        return policy_divergence(teacher.mixture, student.mixture, valid, 8, 0.0, generator).value
    part = TERMS[name]
    return latent_distance(teacher.tokens[:, :, part], student.tokens[:, :, part], valid)


@pytest.mark.parametrize("name", ["text", "extra", "image", "policy"])
def test_term_is_zero_for_equal_networks_and_positive_for_others(name: str) -> None:
    batch = inputs()
    teacher = network(0)
    with torch.no_grad():
        assert float(term(name, teacher(batch), copy.deepcopy(teacher)(batch))) == 0.0
        assert float(term(name, teacher(batch), network(1)(batch))) > 0.0


@pytest.mark.parametrize(
    ("name", "trained"),
    [
        ("text", {"text"}),
        ("extra", {"groups"}),
        ("image", {"views"}),
        ("policy", {"text", "groups", "views", "transformer", "head"}),
    ],
)
def test_term_trains_only_what_it_should(name: str, trained: set[str]) -> None:
    batch = inputs()
    teacher, student = network(0), network(1)
    term(name, teacher(batch), student(batch)).backward()
    touched = {
        parameter_name.split(".")[0]
        for parameter_name, parameter in student.named_parameters()
        if parameter.grad is not None and bool((parameter.grad != 0).any())
    }
    assert touched == trained
    assert all(parameter.grad is None for parameter in teacher.parameters())


def _numeric_kl(p: Mixture, q: Mixture) -> float:
    """KL(p || q) of one-dimensional mixtures by the trapezoidal rule on a grid far beyond both."""
    grid = torch.linspace(-12, 12, 200_001, dtype=torch.float64)[:, None]
    p64, q64 = (Mixture(*(part.double() for part in m)) for m in (p, q))
    log_p, log_q = p64.log_prob(grid), q64.log_prob(grid)
    return float(torch.trapezoid(log_p.exp() * (log_p - log_q), grid[:, 0]))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_monte_carlo_kl_agrees_with_numerical_integration(seed: int) -> None:
    rng = np.random.default_rng(seed)

    def draw() -> Mixture:
        return Mixture(
            torch.tensor(rng.normal(size=3), dtype=torch.float32),
            torch.tensor(rng.uniform(-1, 1, size=(3, 1)), dtype=torch.float32),
            torch.tensor(rng.uniform(0.2, 0.8, size=(3, 1)), dtype=torch.float32),
        )

    p, q = draw(), draw()
    exact = _numeric_kl(p, q)
    generator = torch.Generator().manual_seed(seed)
    actions = p.sample(200_000, generator)
    values = p.log_prob(actions) - q.log_prob(actions)
    standard_error = float(values.std()) / 200_000**0.5
    estimate = policy_divergence(
        Mixture(*(x[None, None] for x in p)),
        Mixture(*(x[None, None] for x in q)),
        torch.ones(1, 1, dtype=torch.bool),
        200_000,
        0.0,
        torch.Generator().manual_seed(seed + 10),
    ).value
    assert exact > 0.01
    assert abs(float(estimate) - exact) < 5 * standard_error


def test_kl_in_seven_dimensions_agrees_with_the_closed_form_of_single_gaussians() -> None:
    p = Mixture(torch.zeros(1, 1, 1), torch.full((1, 1, 1, 7), 0.1), torch.full((1, 1, 1, 7), 0.3))
    q = Mixture(torch.zeros(1, 1, 1), torch.full((1, 1, 1, 7), -0.1), torch.full((1, 1, 1, 7), 0.5))
    exact = 7 * (np.log(0.5 / 0.3) + (0.3**2 + 0.2**2) / (2 * 0.5**2) - 0.5)
    estimate = policy_divergence(
        p, q, torch.ones(1, 1, dtype=torch.bool), 100_000, 0.0, torch.Generator().manual_seed(0)
    )
    assert float(estimate.value) == pytest.approx(exact, rel=0.02)


def test_the_reverse_divergence_and_its_gradient_agree_with_the_closed_form() -> None:
    """Of single Gaussians: KL(s || t) and its slopes in the student's mean and deviation."""
    torch.manual_seed(0)
    then = Mixture(torch.zeros(1, 1, 1), torch.tensor([[[[0.2, -0.1]]]]), torch.tensor([[[[0.5, 0.8]]]]))
    mean = torch.tensor([[[[-0.1, 0.3]]]], requires_grad=True)
    scale = torch.tensor([[[[0.3, 0.6]]]], requires_grad=True)
    valid = torch.ones(1, 1, dtype=torch.bool)
    now = Mixture(torch.zeros(1, 1, 1), mean, scale)
    found = reverse_divergence(then, now, valid, 200_000, 0.0, torch.Generator().manual_seed(0)).value
    exact = (then.scales / scale).log() + (scale**2 + (mean - then.means) ** 2) / (2 * then.scales**2) - 0.5
    assert found.item() == pytest.approx(exact.sum().item(), rel=0.02)
    slopes = torch.autograd.grad(found, (mean, scale))
    wanted = torch.autograd.grad(exact.sum(), (mean, scale))
    for slope, truth in zip(slopes, wanted, strict=True):
        torch.testing.assert_close(slope, truth, rtol=0.05, atol=0.02)


def test_floor_bounds_the_divergence_and_is_reported() -> None:
    valid = torch.ones(1, 1, dtype=torch.bool)
    p = Mixture(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1, 7), torch.full((1, 1, 1, 7), 1e-4))
    q = Mixture(torch.zeros(1, 1, 1), torch.full((1, 1, 1, 7), 0.05), torch.full((1, 1, 1, 7), 1e-4))
    wild = policy_divergence(p, q, valid, 64, 0.0, torch.Generator().manual_seed(0))
    tame = policy_divergence(p, q, valid, 64, 0.05, torch.Generator().manual_seed(0))
    assert float(wild.value) > 1e5
    assert float(wild.floored) == 0.0
    assert float(tame.value) < 10
    assert float(tame.floored) == 1.0


def test_a_subspace_lets_go_of_what_the_teacher_hardly_uses() -> None:
    generator = torch.Generator().manual_seed(1)
    valid = torch.ones(4, 10, dtype=torch.bool)
    valid[0, 3:] = False
    used = torch.linalg.qr(torch.randn(8, 8, generator=generator)).Q
    scale = torch.tensor([9.0, 5.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    teacher = (torch.randn(4, 10, 2, 8, generator=generator) * scale) @ used.T
    beside = teacher + used[:, 5]
    along = teacher + 0.5 * used[:, 0]
    assert float(subspace_distance(teacher, beside, valid, 3)) == pytest.approx(0.0, abs=1e-8)
    assert float(subspace_distance(teacher, along, valid, 3)) == pytest.approx(2 * 0.25, rel=1e-4)
    assert float(subspace_distance(teacher, beside, valid, 6)) == pytest.approx(0.0, abs=1e-8), "three are used"
    full = teacher + torch.randn(4, 10, 2, 8, generator=generator)
    for change in (used[:, 5], 0.5 * used[:, 0]):
        whole = float(subspace_distance(full, full + change, valid, 8))
        assert whole == pytest.approx(float(latent_distance(full, full + change, valid)), rel=1e-5)
    student = beside.clone().requires_grad_(True)
    subspace_distance(teacher, student, valid, 2).backward()
    assert student.grad is not None and not student.grad[0, 3:].any()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert float(subspace_distance(teacher, along, valid, 3)) == pytest.approx(2 * 0.25, rel=1e-4)


def test_only_the_likeliest_samples_are_compared() -> None:
    """Of all samples the likeliest one of a Gaussian is nearest to its mean; all of them together are the whole KL."""
    logits, scales = torch.zeros(1, 1, 1), torch.full((1, 1, 1, 2), 0.3)
    teacher = Mixture(logits, torch.zeros(1, 1, 1, 2), scales)
    student = Mixture(logits, torch.full((1, 1, 1, 2), 0.3), scales)
    valid = torch.ones(1, 1, dtype=torch.bool)

    def found(confident: int) -> float:
        generator = torch.Generator().manual_seed(0)
        return float(policy_divergence(teacher, student, valid, 4000, 0.0, generator, confident).value)

    assert found(4000) == pytest.approx(found(0))
    assert found(0) == pytest.approx(1.0, abs=0.1)  # |0.3, 0.3|^2 / (2 * 0.3^2)
    assert found(1) == pytest.approx(1.0, abs=0.1)
    actions = teacher.sample(4000, torch.Generator().manual_seed(0))
    nearest = actions[teacher.log_prob(actions)[:, 0, 0].argmax()]
    assert found(1) == pytest.approx(float(teacher.log_prob(nearest) - student.log_prob(nearest)), rel=1e-4)


def test_steps_that_are_not_valid_do_not_count() -> None:
    values = torch.tensor([[1.0, 2.0, 1000.0]])
    valid = torch.tensor([[True, True, False]])
    assert float(masked_mean(values, valid)) == 1.5
    tokens = torch.zeros(1, 3, 1, 4)
    moved = tokens.clone()
    moved[:, 2] = 100.0
    assert float(latent_distance(tokens, moved, valid)) == 0.0


def test_behaviour_cloning_of_one_gaussian_is_its_negative_log_density() -> None:
    mixture = Mixture(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1, 7), torch.ones(1, 1, 1, 7))
    loss = behaviour_cloning(mixture, torch.ones(1, 1, 7), torch.ones(1, 1, dtype=torch.bool))
    assert float(loss) == pytest.approx(7 * (0.5 * np.log(2 * np.pi) + 0.5), rel=1e-6)
