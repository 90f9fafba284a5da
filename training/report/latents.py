"""Where a run's latents lie, as the paper's first figure shows them: t-SNE of old tasks' tokens, as they were when the
task had been learned and as they are at the end.

t-SNE (van der Maaten & Hinton 2008) by scikit-learn, one for each modality, of all tasks and both times together: a
task whose two clouds lie apart has moved. Text is left out: it is one point a task.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.manifold import TSNE

from m2distill_policy.errors import TrainingError
from training.drift import modalities
from training.lifelong.run import LifelongRun
from training.lifelong.stage import to_inputs
from training.report.charts import scatter_chart

#: (then, now), each (N, E): a task's tokens when it had been learned and at the end of the run.
Moved = tuple[NDArray[np.float32], NDArray[np.float32]]


def latents(run: LifelongRun) -> dict[str, list[Moved]]:
    """Tokens of probe windows of every stage's last task, modality -> stage -> (then, now); without the text.

    :class:`TrainingError` where the run is not trained to its end, or learned all tasks at once.
    """
    if run.joint:
        raise TrainingError(f"{run.folder} learned all tasks at once: no latents of an old task could move")
    for stage in range(run.stages):
        if not run.trained(stage):
            raise TrainingError(f"{run.folder} has trained {stage} of {run.stages} stages; finish it with --resume")
    last = run.stages - 1
    found: dict[str, list[Moved]] = {}
    for learned in range(run.stages):
        task = run.learned(learned) - 1
        probe = run.probes(learned)
        inputs, valid = to_inputs(probe, torch.device("cpu")), torch.from_numpy(probe.valid)
        times = []
        for stage in (learned, run.answering(last, task)):
            policy = run.policy(stage).cpu().eval()
            with torch.no_grad():
                tokens = policy(inputs).tokens
            times.append(
                {name: tokens[:, :, part].flatten(2)[valid].numpy() for name, part in modalities(policy).items()}
            )
        for name in times[0]:
            if name != "text":
                found.setdefault(name, []).append((times[0][name], times[1][name]))
    return found


def flatten(moved: list[Moved], seed: int = 0) -> list[Moved]:
    """The same points in two dimensions."""
    parts = [part for pair in moved for part in pair]
    points = np.concatenate(parts)
    flat = TSNE(perplexity=min(30.0, (len(points) - 1) / 3), init="pca", random_state=seed).fit_transform(points)
    split = np.split(flat.astype(np.float32), np.cumsum([len(part) for part in parts])[:-1])
    return list(zip(split[::2], split[1::2], strict=True))


def latent_charts(run: LifelongRun, label: str) -> list[str]:
    """One chart a modality."""
    names = [run.tasks[run.learned(stage) - 1].instruction for stage in range(run.stages)]
    return [scatter_chart(flatten(moved), names, f"{label}: {name}") for name, moved in latents(run).items()]
