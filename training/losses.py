"""The terms of the loss, as pure functions of tensors.

M2Distill (Roy et al. 2024, https://arxiv.org/abs/2410.00064), section III: latents of image, text and proprioception
are regularised by the squared L2 distance to those of the teacher (the frozen previous policy), and the distribution of
actions by a Monte Carlo estimate of KL(teacher || student). No gradient flows to the teacher.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from training import distributed
from training.models.mixture import Mixture

#: A direction counts as unused if its eigenvalue is below this share of the largest one: it is then a rounding error.
_UNUSED = 1e-5


def masked_mean(values: Tensor, valid: Tensor) -> Tensor:
    """Return the mean over the valid steps; 0 if there are none.

    If several processes share the batch, each divides its sum by the mean number of valid steps of a process. The mean
    of the processes' results is then the mean over the whole batch.

    Args:
        values: Values of every step (..., B, L).
        valid: Steps that count (B, L), bool.
    """
    weight = valid.to(values.dtype).expand_as(values)
    return (values * weight).sum() / distributed.average(weight.sum()).clamp_min(1.0)


def behaviour_cloning(mixture: Mixture, actions: Tensor, valid: Tensor) -> Tensor:
    """Return the negative log-likelihood of actions (B, L, A) under mixture (B, L), in nats: mean over valid steps."""
    return -masked_mean(mixture.log_prob(actions), valid)


def latent_distance(teacher: Tensor, student: Tensor, valid: Tensor) -> Tensor:
    """Return the squared L2 distance of tokens (B, L, T, E): sum over T and E, mean over valid steps."""
    return masked_mean((teacher.detach() - student).square().sum(dim=(-2, -1)), valid)


def subspace_distance(teacher: Tensor, student: Tensor, valid: Tensor, rank: int) -> Tensor:
    """Return :func:`latent_distance` within the ``rank`` dominant directions of the teacher's tokens.

    Directions that the teacher hardly uses may change freely. The directions are the right singular vectors of the
    teacher's tokens over the valid steps of the batch (of all processes), for each of the T tokens separately. If the
    steps span fewer than ``rank`` directions, only these directions count. For example, the text token spans a single
    direction if all steps have the same instruction. SPREAD (Roy et al. 2026, https://arxiv.org/abs/2603.08763) aligns
    dominant subspaces by singular value decomposition in this way.
    """
    with torch.autocast(teacher.device.type, enabled=False):  # bf16 is not precise enough for eigenvectors
        teacher = teacher.detach().float()
        weight = valid.to(teacher.dtype)[..., None, None]
        moment = torch.einsum("blte,bltf->tef", teacher * weight, teacher)
        sizes, directions = torch.linalg.eigh(distributed.average(moment))  # ascending
        used = sizes[..., -rank:] > _UNUSED * sizes[..., -1:]
        directions = directions[..., -rank:] * used[..., None, :]
        difference = torch.einsum("blte,ter->bltr", teacher - student.float(), directions)
    return masked_mean(difference.square().sum(dim=(-2, -1)), valid)


class PolicyDivergence(NamedTuple):
    """An estimate of the divergence between two policies.

    Attributes:
        value: The estimate, in nats.
        floored: Share of the student's standard deviations that were raised to the floor.
    """

    value: Tensor
    floored: Tensor


def _floored(teacher: Mixture, student: Mixture, floor: float) -> tuple[Mixture, Mixture, Tensor]:
    """Raise the standard deviations of both mixtures to at least ``floor``.

    Returns:
        The teacher without gradient, the student, and the share of the student's standard deviations that were raised.
    """
    share = (student.scales < floor).float().mean().detach()
    return teacher.detach().floored(floor), student.floored(floor), share


def policy_divergence(
    teacher: Mixture,
    student: Mixture,
    valid: Tensor,
    samples: int,
    floor: float,
    generator: torch.Generator | None = None,
    confident: int = 0,
) -> PolicyDivergence:
    """Estimate KL(teacher || student) as the mean of log pi_t(a) - log pi_s(a) over sampled actions a ~ pi_t.

    Args:
        teacher: Mixture of the previous policy (B, L); it gets no gradient.
        student: Mixture of the current policy (B, L).
        valid: Steps that count (B, L), bool.
        samples: Number of actions that are sampled for each step.
        floor: Lower limit of the standard deviations of both mixtures in this term. The network itself allows 1e-4; a
            single sample that is ten such deviations away would outweigh the rest of the batch.
        generator: Random number generator that samples the actions.
        confident: Number of samples of each step that are used: those that are most likely under the teacher, as in
            SPREAD (https://arxiv.org/abs/2603.08763); 0: all. With fewer than all samples, the result is no longer an
            estimate of the divergence.
    """
    teacher, student, share = _floored(teacher, student, floor)
    actions = teacher.sample(samples, generator)
    expected, found = teacher.log_prob(actions), student.log_prob(actions)
    if confident:
        expected, likeliest = expected.topk(confident, dim=0)
        found = found.gather(0, likeliest)
    return PolicyDivergence(masked_mean(expected - found, valid), share)


def reverse_divergence(
    teacher: Mixture,
    student: Mixture,
    valid: Tensor,
    samples: int,
    floor: float,
    generator: torch.Generator | None = None,
) -> PolicyDivergence:
    """Estimate KL(student || teacher) as the mean of log pi_s(a) - log pi_t(a) over sampled actions a ~ pi_s.

    With this direction the student takes only actions that are likely under the teacher, but it need not cover all
    modes of the teacher. Samples of a mixture are not differentiable in its parameters. The gradient is therefore
    estimated with the score function: E_s[(log pi_s - log pi_t) grad log pi_s] (Williams 1992). The baseline of a
    sample is the mean of the other samples, which lowers the variance and adds no bias. For the arguments see
    :func:`policy_divergence`.
    """
    teacher, student, share = _floored(teacher, student, floor)
    actions = student.detach().sample(samples, generator)
    found = student.log_prob(actions)
    difference = (found - teacher.log_prob(actions)).detach()
    if samples > 1:  # baseline of a sample: the mean of the others
        others = (difference.sum(0, keepdim=True) - difference) / (samples - 1)
    else:
        others = torch.zeros_like(difference)
    score = (difference - others) * found
    return PolicyDivergence(masked_mean(difference + score - score.detach(), valid), share)
