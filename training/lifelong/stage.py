"""Train one stage, which can be killed at any moment and resumed.

The windows, augmentation, dropout and Monte Carlo samples of a step are sampled with a seed that depends only on the
run's seed, the stage and the step. On the same machine, with the same number of threads, a resumed stage therefore ends
with exactly the weights of an uninterrupted stage.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from m2distill_policy.errors import DivergedError, TrainingError
from m2distill_policy.storage import writing
from training import distributed
from training.allocator import free_bytes, keep_freed_memory
from training.data.augment import augment
from training.data.task_data import Demonstrated, WindowBatch
from training.lifelong.partial_checkpoint import resume_partial, save_partial
from training.lifelong.stop import StoppedError, stop_requests
from training.lifelong.strategy import Composed, Strategy, Targets, imitation
from training.models.resnet_t import Inputs, ResNetT
from training.run_config import RunConfig

#: Called after every step with (step, steps, terms).
Listener = Callable[[int, int, dict[str, float]], None]

#: Largest share of the free memory for a batch's feature maps. Larger feature maps are recomputed in the backward pass.
#: The rest of the memory is for gradients of feature maps and for other processes.
_FEATURE_SHARE = 0.5
#: Upper limit for feature maps on a CPU, in bytes. It keeps a run of the paper's size under 8 GiB on any machine.
#: Behaviour cloning with batches of 32 windows in fp32 needs 4.3 GiB of feature maps, so it does not recompute them.
_FEATURE_MOST = 4.5 * 2**30


def pick_device() -> torch.device:
    """Return the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_precision(wanted: str, device: torch.device) -> torch.dtype | None:
    """Return the precision of the forward pass.

    Args:
        wanted: ``optim.precision``: ``fp32``, ``bf16`` or ``auto``. ``auto`` means bf16 if the hardware has bf16
            instructions. A CPU without them emulates bf16, which is more than ten times slower than fp32.
        device: Device that computes the forward pass.

    Returns:
        ``torch.bfloat16``, or None for fp32.
    """
    if wanted == "fp32":
        return None
    if wanted == "bf16":
        return torch.bfloat16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else None
    capable = torch.cpu.get_capabilities()
    return torch.bfloat16 if capable.get("avx512_bf16") or capable.get("amx_bf16") else None


def learning_rate(step: int, steps: int, highest: float, lowest: float, warmup: int) -> float:
    """Return the learning rate of a step: a linear warm-up to ``highest``, then half a cosine down to ``lowest``."""
    if step < warmup:
        return highest * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    return lowest + 0.5 * (highest - lowest) * (1 + math.cos(math.pi * min(1.0, progress)))


def to_inputs(batch: WindowBatch, device: torch.device) -> Inputs:
    """Convert a batch to tensors on ``device``.

    Frames become float32 in [0, 1], channels first. Their memory stays channels last, which is faster for convolutions.
    """
    return Inputs(
        images={
            name: torch.from_numpy(frames).to(device).permute(0, 1, 4, 2, 3).to(torch.float32).div_(255.0)
            for name, frames in batch.images.items()
        },
        proprioception={name: torch.from_numpy(v).to(device) for name, v in batch.proprioception.items()},
        embedding=torch.from_numpy(batch.embedding).to(device),
        single_steps=torch.from_numpy(batch.single_steps).to(device),
    )


def train_stage(
    policy: ResNetT,
    strategy: Strategy,
    data: Demonstrated,
    config: RunConfig,
    stage: int,
    folder: Path,
    listener: Listener,
    snapshot: Callable[[int], None],
) -> None:
    """Train ``policy`` in place on ``data``, or resume from the partial checkpoint in ``folder``.

    On SIGINT or SIGTERM the current step is finished and a partial checkpoint is written.

    Args:
        policy: The network to train.
        strategy: Strategy that composes the batches and computes the loss.
        data: Demonstrations of the stage.
        config: Settings of the run.
        stage: Number of the stage, from 0.
        folder: Folder of the stage, which holds the partial checkpoint.
        listener: Function that is called after every step.
        snapshot: Function that is called at each checkpoint candidate, with its number, 1 to
            ``config.evaluation.candidates``. If there are several candidates, it is also called with 0 before the
            first step.

    Raises:
        TrainingError: The stage has fewer steps than candidates.
        DivergedError: The loss is not finite.
        StoppedError: A signal stopped the training.
    """
    learner = Learner(policy, strategy, data, config, stage)
    readers = {id(parameter) for parameter in policy.text_parameters()}
    optimiser = torch.optim.AdamW(
        [
            {"params": [p for p in policy.parameters() if id(p) not in readers], "factor": 1.0},
            {"params": policy.text_parameters(), "factor": config.optim.text_lr_factor},
        ],
        lr=config.optim.lr,
        weight_decay=config.optim.weight_decay,
        betas=(0.9, 0.999),
    )
    steps = config.optim.stage_steps(stage, data.steps, policy.contract.history, data.tasks)
    if steps < config.evaluation.candidates:
        raise TrainingError(
            f"evaluation.candidates is {config.evaluation.candidates}, and '{data.name}' is learned in {steps} steps "
            f"({config.optim.stage_epochs(stage):g} epochs of {data.steps}); ask for fewer candidates or more epochs"
        )
    candidates = {
        round(steps * (i + 1) / config.evaluation.candidates): i + 1 for i in range(config.evaluation.candidates)
    }
    strategy.begin_stage(policy, stage)
    done = resume_partial(policy, optimiser, folder, stage)
    distributed.wait()  # all processes read the partial checkpoint before the first process writes a new one
    learner.join()
    saved_at = time.monotonic()
    if done == 0 and config.evaluation.candidates > 1:
        snapshot(0)
    with stop_requests() as request:
        for step in range(done, steps):
            rate = learning_rate(step, steps, config.optim.stage_lr(stage), config.optim.lr_end, config.optim.warmup)
            for group in optimiser.param_groups:
                group["lr"] = rate * group["factor"]
            terms = learner.step(step, steps, optimiser)
            listener(step + 1, steps, {**terms, "lr": rate})
            if step + 1 in candidates:
                snapshot(candidates[step + 1])
            due = time.monotonic() - saved_at >= config.optim.checkpoint_seconds
            if distributed.is_first() and (request.number or (step + 1 < steps and due)):
                save_partial(policy, optimiser, folder, stage, step + 1)
                saved_at = time.monotonic()
            if request.number:
                raise StoppedError(request.number, folder.parent.parent, stage, step + 1)
    end_stage(policy, strategy, data, config, stage)


def end_stage(policy: ResNetT, strategy: Strategy, data: Demonstrated, config: RunConfig, stage: int) -> None:
    """Call the strategy's ``end_stage`` for a stage that ``policy`` has just learned from ``data``."""
    steps = config.optim.stage_steps(stage, data.steps, policy.contract.history, data.tasks)
    learner = Learner(policy, strategy, data, config, stage)
    strategy.end_stage(policy, lambda number: learner.imitate(steps + number))


class Learner:
    """The training steps of one stage."""

    def __init__(self, policy: ResNetT, strategy: Strategy, data: Demonstrated, config: RunConfig, stage: int) -> None:
        self.policy, self.strategy, self.data, self.config, self.stage = policy, strategy, data, config, stage
        self.device = next(policy.parameters()).device
        precision = pick_precision(config.optim.precision, self.device)
        self._precision = precision or torch.bfloat16
        self._mixed = precision is not None
        if config.optim.threads:
            torch.set_num_threads(config.optim.threads)
        policy.views.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._recompute: bool | None = None
        self._network: torch.nn.Module = policy

    def join(self) -> None:
        """Synchronise gradients with the other processes, if there are any; every process must call this."""
        self._network = distributed.data_parallel(self.policy)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self._precision, enabled=self._mixed)

    def _sample(self, step: int) -> tuple[Composed, Inputs, Targets, torch.Generator]:
        """Sample the batch of one step, and seed torch for the step's dropout."""
        config, history = self.config, self.policy.contract.history
        rng = np.random.default_rng([config.seed, self.stage, step])
        seed = int(rng.integers(2**62))
        torch.manual_seed(seed)
        generator = torch.Generator(device=self.device).manual_seed(seed + 1)
        windows = self.data.windows(rng, config.optim.batch, history, config.optim.single_steps)
        composed = self.strategy.compose(windows, rng)
        rows = distributed.shared_rows((composed.new, composed.memory, composed.old_instructions))
        of = None
        if rows is not None:
            of, composed = (len(composed.batch), rows), composed.take(rows)
            torch.manual_seed(seed + 2 + distributed.rank())  # every process has its own dropout
        inputs = to_inputs(composed.batch, self.device)
        inputs.images = augment(inputs.images, config.augment, rng, of)
        actions, valid = (torch.from_numpy(a).to(self.device) for a in (composed.batch.actions, composed.batch.valid))
        return composed, inputs, Targets(actions, valid), generator

    def _choose_memory(self, inputs: Inputs) -> None:
        """Decide, before the first batch, whether its feature maps are stored or recomputed in the backward pass."""
        if self._recompute is not None:
            return
        wanted = self.config.optim.recompute
        if wanted == "auto":
            batch, length = next(iter(inputs.images.values())).shape[:2]
            with self._autocast():
                needed = batch * length * self.policy.feature_bytes()
            free = free_bytes(self.device)
            most = torch.inf if free is None else _FEATURE_SHARE * free
            if self.device.type == "cpu":
                most = min(most, _FEATURE_MOST)
            short = torch.tensor(float(needed > most), device=self.device)
            # If one process lacks memory, all recompute, because batch norms exchange statistics in each computation.
            wanted = bool(distributed.average(short) > 0)
        self._recompute = wanted
        self.policy.recompute(wanted)
        # Freed memory that is kept becomes fragmented. It is therefore returned to the operating system if memory is
        # scarce, also if an earlier stage with smaller batches has switched keeping on.
        keep_freed_memory(not wanted)

    def imitate(self, step: int) -> Tensor:
        """Return the behaviour cloning loss of the batch of one step."""
        composed, inputs, targets, _ = self._sample(step)
        self._choose_memory(inputs)
        with self._autocast():
            return imitation(composed, self.policy(inputs), targets)

    def step(self, step: int, steps: int, optimiser: torch.optim.Optimizer) -> dict[str, float]:
        """Do one optimiser step.

        Returns:
            The terms of the loss by name, averaged over processes, and the norm of the gradient.

        Raises:
            DivergedError: A term or the norm is not finite.
        """
        self.policy.train()
        if self.stage > 0 and self.config.network.batch_norm == "frozen_after_first":
            self.policy.freeze_batch_norm()
        self.strategy.before_step(self.policy, step, steps)
        with distributed.sharing():
            composed, inputs, targets, generator = self._sample(step)
            self._choose_memory(inputs)
            with self._autocast():
                output = self._network(inputs)
                terms = self.strategy.loss(composed, inputs, output, targets, generator)
            optimiser.zero_grad(set_to_none=True)
            terms["total"].backward()
            means = distributed.average(torch.stack([value.detach().float() for value in terms.values()]))
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.optim.clip)
        values = dict(zip(terms, means.tolist(), strict=True))
        values["gradient"] = float(norm)
        if not all(math.isfinite(v) for v in values.values()):
            raise DivergedError(
                f"the loss is not finite at stage {self.stage}, step {step + 1} ({values}); resuming would "
                "fail again: start a new run with a lower optim.lr"
            )
        optimiser.step()
        self.strategy.after_step(self.policy)
        return values


def append_json_line(path: Path, row: dict[str, object]) -> None:
    """Append one row to a JSON-lines file."""
    with writing(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, sort_keys=True) + "\n")
