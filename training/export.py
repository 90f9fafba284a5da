"""Export a trained policy as a bundle of two ONNX graphs, and compare them with the network on real frames."""

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
from training.graph_runner import GraphRunner
from training.models.mixture import Mixture
from training.models.resnet_t import Inputs, ResNetT
from training.quantise import Loss, loss, quantise

OPSET = 17
#: Precision of the step graph's convolutions and of the trunk of its head.
Precision: TypeAlias = Literal["fp32", "int8"]
#: Largest allowed difference of the mixture's parameters between ONNX Runtime and torch in fp32.
TOLERANCE = 1e-4


class InstructionGraph(nn.Module):
    """The graph of ``instruction.onnx``: embedding (B, text size) -> text_token (B, E), FiLM terms ``film`` (B, F)."""

    def __init__(self, policy: ResNetT) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        return self.policy.condition(embedding)


class StepGraph(nn.Module):
    """The graph of ``step.onnx``: newest images and proprioception, and the tokens of earlier steps -> the mixture.

    The tokens of earlier steps are right-aligned. The transformer always runs over ``history`` slots, and a mask hides
    the empty slots. One graph can therefore be used for windows of every length.
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
        # An empty slot may contain NaN, and 0 x NaN is NaN: it is set to zero before it is multiplied with a weight.
        window = torch.where(valid.reshape(window.shape[0], contract.history, self.tokens, 1), window, 0.0)
        mask = self.causal & valid[:, None, None, :]
        mixture = policy.head(policy.decode_newest(window, positions, mask))
        return mixture.logits, mixture.means, mixture.scales, tokens


def _to_onnx(module: nn.Module, example: tuple[Tensor, ...], inputs: list[str], outputs: list[str]) -> bytes:
    buffer = io.BytesIO()
    module.eval()
    with warnings.catch_warnings():
        # The tracing exporter is the only one that needs no further package. Its deprecation warning is of no use here.
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
    """Return the graphs of a policy as file name -> bytes: ``instruction.onnx`` and ``step.onnx``."""
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


def replay_of(policy: ResNetT, graphs: Mapping[str, bytes], data: TaskData, steps: int | None = None) -> GraphRunner:
    """Return the replay of the first episode of ``data`` through the graphs of ``policy``."""
    shape = (policy.tokens_per_step, policy.config.embed)
    return GraphRunner(graphs, data, history=policy.contract.history, token_shape=shape, steps=steps)


@dataclass(frozen=True)
class Parity:
    """Result of the comparison of ONNX Runtime and torch.

    Attributes:
        largest: Largest absolute difference of a parameter of the mixture.
        steps: Number of steps that were compared.
        int8: Difference between int8 and fp32; None for a bundle in fp32.
    """

    largest: float
    steps: int
    int8: Loss | None = None


def check_parity(policy: ResNetT, graphs: Mapping[str, bytes], data: TaskData) -> Parity:
    """Compare ONNX Runtime and torch on real frames, from the first step until a few steps after the window is full.

    Args:
        policy: The network.
        graphs: File name -> bytes of the network's graphs.
        data: Demonstrations, of which the first episode is used.

    Raises:
        ExportError: A parameter of the mixture differs by more than :data:`TOLERANCE`, or the episode is too short.
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
    """Export a policy, compare the graphs with the network, and write the bundle.

    Args:
        policy: The network.
        path: Folder of the bundle.
        tasks: Name and instruction of every learned task, in order.
        embeddings: Embeddings of the instructions (tasks, text size), in the same order.
        check_on: Demonstrations on which the graphs are compared with the network and int8 is calibrated.
        provenance: Where the policy comes from; it is written into the bundle.
        precision: See :data:`Precision`. With ``int8``, the difference from fp32 is measured and written into the
            bundle.
        overwrite: Replace a bundle at ``path``.

    Returns:
        The largest differences that the comparison found.

    Raises:
        ExportError: See :func:`check_parity` and :func:`training.quantise.quantise`.
    """
    graphs = build_graphs(policy)
    parities = [check_parity(policy, graphs, data) for data in check_on]
    if not parities:
        raise ExportError("no demonstrations were given; a bundle is checked on at least one before it is written")
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
