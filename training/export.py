"""A trained policy becomes a bundle: two ONNX graphs, proved equal to the network on real frames."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from m2distill_policy.bundle_writer import write_bundle
from m2distill_policy.errors import ExportError
from training.data.task_data import TaskData
from training.models.mixture import Mixture
from training.models.resnet_t import Inputs, ResNetT
from training.quantise import Loss, loss, quantise
from training.replay import GraphReplay

OPSET = 17
#: Of the step's convolutions and the head's trunk.
Precision: TypeAlias = Literal["fp32", "int8"]
#: Largest difference of the mixture's parameters between ONNX Runtime and torch, fp32.
TOLERANCE = 1e-4


class InstructionGraph(nn.Module):
    """``instruction.onnx``: embedding (B, text size) -> text_token (B, E), film (B, F)."""

    def __init__(self, policy: ResNetT) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        return self.policy.condition(embedding)


class StepGraph(nn.Module):
    """``step.onnx``: the newest frames and readings beside the kept tokens of earlier steps -> the mixture.

    The kept tokens are right-aligned; the transformer always runs over ``history`` slots, and a mask hides the
    empty ones, so that one graph serves windows of every length.
    """

    def __init__(self, policy: ResNetT) -> None:
        super().__init__()
        self.policy = policy
        tokens = policy.tokens_per_step
        self.register_buffer("slot", torch.arange(policy.contract.history), persistent=False)
        self.register_buffer("causal", policy.mask.clone(), persistent=False)
        self.slot: Tensor
        self.causal: Tensor
        self.tokens = tokens

    def forward(
        self, text_token: Tensor, film: Tensor, past_tokens: Tensor, past_count: Tensor, *inputs: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        policy, contract = self.policy, self.policy.contract
        views = len(contract.cameras)
        images = [frame.permute(0, 3, 1, 2).to(torch.float32) / 255.0 for frame in inputs[:views]]
        tokens = policy.step_tokens(text_token, film, images, list(inputs[views:]))
        window = torch.cat([past_tokens, tokens.unsqueeze(1)], dim=1)
        first = (contract.history - 1) - past_count.unsqueeze(1)  # (B, 1): the oldest valid slot
        positions = policy.positions[(self.slot.unsqueeze(0) - first).clamp_min(0)]
        valid = (self.slot.unsqueeze(0) >= first).repeat_interleave(self.tokens, dim=1)
        # A slot that was never filled may hold anything, and 0 x NaN is NaN: blank it before it meets a weight.
        window = torch.where(valid.reshape(window.shape[0], contract.history, self.tokens, 1), window, 0.0)
        mask = self.causal & valid[:, None, None, :]
        mixture = policy.head(policy.decode_newest(window, positions, mask))
        return mixture.logits, mixture.means, mixture.scales, tokens


def _to_onnx(module: nn.Module, example: tuple[Tensor, ...], inputs: list[str], outputs: list[str]) -> bytes:
    buffer = io.BytesIO()
    module.eval()
    with warnings.catch_warnings():
        # The tracing exporter is the one that needs no further package; its notice of retirement is no user's business.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            example,
            buffer,  # type: ignore[arg-type]  # the tracing exporter takes a buffer, its annotation does not say so
            input_names=inputs,
            output_names=outputs,
            opset_version=OPSET,
            dynamo=False,
            dynamic_axes={name: {0: "batch"} for name in [*inputs, *outputs]},
        )
    return buffer.getvalue()


def build_graphs(policy: ResNetT) -> dict[str, bytes]:
    """The bytes of ``instruction.onnx`` and ``step.onnx``."""
    contract = policy.contract
    assert contract.text is not None
    policy = policy.eval()
    embed, tokens, past = policy.config.embed, policy.tokens_per_step, contract.history - 1
    instruction = _to_onnx(
        InstructionGraph(policy), (torch.zeros(2, contract.text.size),), ["embedding"], ["text_token", "film"]
    )
    example: list[Tensor] = [
        torch.zeros(2, embed),
        torch.zeros(2, policy.film_size),
        torch.zeros(2, past, tokens, embed),
        torch.zeros(2, dtype=torch.int64),
    ]
    example += [torch.zeros(2, *camera.shape, dtype=torch.uint8) for camera in contract.cameras]
    example += [torch.zeros(2, group.size) for group in contract.proprioception]
    step = _to_onnx(
        StepGraph(policy),
        tuple(example),
        ["text_token", "film", "past_tokens", "past_count", *contract.camera_names, *contract.proprioception_names],
        ["logits", "means", "scales", "tokens"],
    )
    return {"instruction.onnx": instruction, "step.onnx": step}


def replay_of(policy: ResNetT, graphs: Mapping[str, bytes], data: TaskData, steps: int | None = None) -> GraphReplay:
    """The first episode of ``data`` through ``graphs``, which are (or stand for) those of ``policy``."""
    shape = (policy.tokens_per_step, policy.config.embed)
    return GraphReplay(graphs, data, history=policy.contract.history, token_shape=shape, steps=steps)


@dataclass(frozen=True)
class Parity:
    """Largest differences seen between ONNX Runtime and torch: of the mixture's parameters, and of how many steps.

    int8: what int8 costs beside the fp32 that was checked; None for a bundle in fp32.
    """

    largest: float
    steps: int
    int8: Loss | None = None


def check_parity(policy: ResNetT, graphs: Mapping[str, bytes], data: TaskData) -> Parity:
    """Run both over real frames, from 1 valid step to a full window and on until the window has slid.

    Raises :class:`ExportError` if any of the mixture's parameters differs by more than :data:`TOLERANCE`.
    """
    contract = policy.contract
    history = contract.history
    policy = policy.eval()
    count = min(int(data.lengths[0]), history + 5)
    if count < history + 1:
        raise ExportError(
            f"the first episode of '{data.name}' has {count} steps; the parity check needs at least {history + 1}"
        )
    largest = 0.0
    for t, (_, (*onnx_mixture, _)) in enumerate(replay_of(policy, graphs, data, count)):
        first = max(0, t - history + 1)
        with torch.no_grad():
            output = policy(
                Inputs(
                    {
                        n: torch.from_numpy(f[first : t + 1]).permute(0, 3, 1, 2)[None].float() / 255.0
                        for n, f in data.images.items()
                    },
                    {n: torch.from_numpy(v[first : t + 1])[None] for n, v in data.proprioception.items()},
                    torch.from_numpy(data.embedding)[None],
                )
            )
        reference = Mixture(*(part[:, -1] for part in output.mixture))
        for name, ours, theirs in zip(reference._fields, reference, onnx_mixture, strict=True):
            difference = float(np.abs(ours.numpy() - theirs).max())
            if not difference <= TOLERANCE:
                raise ExportError(
                    f"ONNX Runtime and torch differ by {difference:.2e} in '{name}' at step {t + 1} of a window; "
                    f"at most {TOLERANCE:.0e} is allowed, so no bundle was written"
                )
            largest = max(largest, difference)
    return Parity(largest, count)


def export_bundle(
    policy: ResNetT,
    path: Path,
    *,
    tasks: Sequence[Mapping[str, str]],
    embeddings: NDArray[np.float32],
    check_on: Sequence[TaskData],
    provenance: Mapping[str, Any],
    precision: Precision = "fp32",
    overwrite: bool = False,
) -> Parity:
    """Write the bundle of ``policy`` to ``path`` after checking it on each of ``check_on``.

    tasks: name and instruction of every task learned, in order; embeddings (tasks, text size), in the same order.
    precision: ``int8`` is calibrated on ``check_on``, and what it costs there is measured and written down.
    """
    graphs = build_graphs(policy)
    parities = [check_parity(policy, graphs, data) for data in check_on]
    if not parities:
        raise ExportError("a bundle is checked on real frames before it is written; no demonstrations were given")
    parity = max(parities, key=lambda p: p.largest)
    checked: dict[str, Any] = {"largest_difference": parity.largest, "steps": parity.steps}
    if precision == "int8":
        exact = graphs
        graphs = quantise(exact, [replay_of(policy, exact, data) for data in check_on])
        losses = [loss(replay_of(policy, exact, d), replay_of(policy, graphs, d)) for d in check_on]
        parity = replace(parity, int8=max(losses, key=lambda found: found.largest))
        checked["int8"] = asdict(parity.int8) if parity.int8 is not None else None
    write_bundle(
        path,
        contract=policy.contract,
        tasks=list(tasks),
        network={
            "modes": policy.config.modes,
            "tokens": policy.tokens_per_step,
            "embed": policy.config.embed,
            "film": policy.film_size,
            "parameters": sum(p.numel() for p in policy.parameters()),
        },
        provenance={**provenance, "precision": precision, "parity": checked},
        instructions=[task["instruction"] for task in tasks],
        embeddings=embeddings,
        graphs=graphs,
        views={name: frames[0] for name, frames in check_on[-1].images.items()},
        overwrite=overwrite,
    )
    return parity
