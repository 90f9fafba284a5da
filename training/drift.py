"""How far the latents of an old task have moved since it was learned, a modality."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from training.data.task_data import WindowBatch
from training.lifelong.stage import to_inputs
from training.losses.terms import masked_mean
from training.models.resnet_t import ResNetT


@dataclass(frozen=True)
class Drift:
    """l2: mean distance between then and now; relative: the same over the mean norm then; cosine: mean similarity.

    cka: linear centred kernel alignment (Kornblith et al. 2019, https://arxiv.org/abs/1905.00414) over all steps: 1
    where now is then turned, stretched alike or moved, which a next layer can undo; None where then is the same token
    for every step.
    """

    l2: float
    relative: float
    cosine: float
    cka: float | None


def modalities(policy: ResNetT) -> dict[str, slice]:
    """Rows of a step's tokens by name: text, each proprioception group, each view."""
    names = ["text", *policy.contract.proprioception_names, *policy.contract.camera_names]
    return {name: slice(i, i + 1) for i, name in enumerate(names)}


def latent_drift(then: ResNetT, now: ResNetT, probe: WindowBatch) -> dict[str, Drift]:
    """Drift of each modality's tokens on the same windows, both policies in evaluation mode."""
    device = next(now.parameters()).device
    inputs = to_inputs(probe, device)
    valid = torch.from_numpy(probe.valid).to(device)
    with torch.no_grad():
        before, after = then.eval()(inputs).tokens, now.eval()(inputs).tokens
    result = {}
    for name, part in modalities(now).items():
        a, b = before[:, :, part].flatten(2), after[:, :, part].flatten(2)
        norm = masked_mean(a.norm(dim=-1), valid).clamp_min(1e-8)
        distance = masked_mean((a - b).norm(dim=-1), valid)
        cosine = masked_mean(torch.cosine_similarity(a, b, dim=-1), valid)
        result[name] = Drift(float(distance), float(distance / norm), float(cosine), linear_cka(a[valid], b[valid]))
    return result


def linear_cka(a: Tensor, b: Tensor) -> float | None:
    """Linear CKA of two sets of features (N, p) and (N, q) of the same N examples, 0 to 1; None where one of them does
    not vary."""
    a, b = ((x - x.mean(0)).double() for x in (a, b))
    scale = (a.T @ a).norm() * (b.T @ b).norm()
    if not scale > 1e-12 * len(a):
        return None
    return float((b.T @ a).norm().square() / scale)
