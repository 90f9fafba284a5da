"""Latency of one policy step, ONNX Runtime in fp32 and int8 against torch, interleaved.

``python -m benchmarks.policy_latency --config config/paper.toml``. The torch side does what LIBERO's ``get_action``
does: encode the newest frames, keep the tokens of earlier steps, run the transformer over the window, sample. With
``--libero FOLDER`` (see :mod:`benchmarks.libero_policy`) LIBERO's own code is timed as well. All use the same number of
threads. Frames are noise, weights are untrained. ``--profile`` adds where ONNX Runtime's time goes, an operator.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from benchmarks.output import add_out, command, make_parser, percentiles
from benchmarks.result_files import write_measurement
from benchmarks.training_speed import noise
from m2distill_policy.bundle import open_bundle
from m2distill_policy.config import load_config, to_dict
from m2distill_policy.contract import Contract, Text, libero_contract
from m2distill_policy.observation import Observation
from m2distill_policy.runtime.server import PolicyServer
from training.data.task_data import TaskData
from training.export import export_bundle, replay_of
from training.models.resnet_t import ResNetT
from training.run_config import RunConfig

#: Steps at the start that are not counted.
_WARM = 20


def main() -> None:
    """Measure and write."""
    parser = make_parser(__doc__)
    parser.add_argument("--config", type=Path, default=Path("config/tiny.toml"))
    parser.add_argument("--text-size", type=int, default=384)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--libero", type=Path, metavar="FOLDER", help="time LIBERO's own get_action from its sources")
    parser.add_argument("--profile", action="store_true", help="add where ONNX Runtime's time goes")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    add_out(parser)
    args = parser.parse_args()
    config = load_config(RunConfig, args.config, args.overrides)
    contract = libero_contract(config.image_size, Text("noise", "0", "none", 1.0, args.text_size))
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    policy = ResNetT(config.network, contract).eval()
    data = noise(contract, 0)
    profiles: dict[str, dict[str, float]] = {}
    rivals: dict[str, Callable[[Observation, float], object]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for precision in ("fp32", "int8"):
            rivals[f"onnxruntime_{precision}"] = _served(policy, data, Path(folder), precision, args.threads)
            if args.profile:
                graphs = open_bundle(Path(folder) / precision).graphs
                profiles[precision] = _profile(policy, dict(graphs), data, Path(folder), args.threads)
    rivals["torch"] = _in_torch(policy, data, contract)
    if args.libero is not None:
        from benchmarks.libero_policy import libero_get_action

        get_action = libero_get_action(args.libero, contract, args.text_size)
        embedding = torch.from_numpy(data.embedding)
        rivals["libero_get_action"] = lambda observation, now: get_action(observation, embedding)
    taken: dict[str, list[float]] = {name: [] for name in rivals}
    for t in range(args.steps):
        row = t % data.steps
        frames = {name: f[row] for name, f in data.images.items()}
        readings = {name: v[row] * 0.01 for name, v in data.proprioception.items()}
        observation = Observation(frames, readings, t * contract.period)
        for name, answer in rivals.items():
            begin = time.perf_counter()
            answer(observation, t * contract.period)
            taken[name].append(time.perf_counter() - begin)
    counted = {name: np.array(seconds[_WARM:]) for name, seconds in taken.items()}
    median = {name: float(np.median(seconds)) for name, seconds in counted.items()}
    slow = [name for name in rivals if not name.startswith("onnxruntime")]
    write_measurement(
        "policy_latency",
        {**to_dict(config.network), "image_size": config.image_size, "threads": args.threads, "steps": args.steps},
        {
            **{f"{name}_ms": percentiles(seconds) for name, seconds in counted.items()},
            **{
                f"{other}_over_{ours}": round(median[other] / median[ours], 2)
                for other in slow
                for ours in rivals
                if ours not in slow
            },
            **({"profile_ms": profiles} if profiles else {}),
        },
        args.out,
    )


def _served(
    policy: ResNetT, data: TaskData, folder: Path, precision: str, threads: int
) -> Callable[[Observation, float], object]:
    """A step as it is served: checks, network, sampling, safety."""
    export_bundle(
        policy,
        folder / precision,
        tasks=[{"name": "noise", "instruction": "noise"}],
        embeddings=data.embedding[None],
        check_on=[data],
        provenance={},
        precision=precision,  # type: ignore[arg-type]
    )
    server = PolicyServer(open_bundle(folder / precision), threads=threads)
    server.set_instruction("noise")
    return server.step


def _in_torch(policy: ResNetT, data: TaskData, contract: Contract) -> Callable[[Observation, float], object]:
    """A step as LIBERO's ``get_action`` takes it, with our network."""
    with torch.inference_mode():
        text_token, film = policy.condition(torch.from_numpy(data.embedding)[None])
    kept: list[torch.Tensor] = []

    def step(observation: Observation, now: float) -> object:
        with torch.inference_mode():
            tokens = policy.step_tokens(
                text_token,
                film,
                [torch.from_numpy(f).permute(2, 0, 1)[None].float() / 255 for f in observation.images.values()],
                [torch.from_numpy(v)[None] for v in observation.proprioception.values()],
            )
            kept.append(tokens)
            del kept[: -contract.history]
            length = len(kept)
            size = length * policy.tokens_per_step
            features = policy.decode(torch.stack(kept, 1), policy.positions[:length], policy.mask[:size, :size])
            return policy.head(features[:, -1]).sample(1)

    return step


def _profile(policy: ResNetT, graphs: dict[str, bytes], data: TaskData, folder: Path, threads: int) -> dict[str, float]:
    """ms a step that ONNX Runtime spends in each kind of operator, the ten largest."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    session = onnxruntime.InferenceSession(graphs["step.onnx"], options, providers=["CPUExecutionProvider"])
    steps = 0
    for feed, _ in replay_of(policy, graphs, data):
        session.run(None, feed)
        steps += 1
    events: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text())
    spent: Counter[str] = Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            spent[event["args"]["op_name"]] += event["dur"]
    return {name: round(micro / 1e3 / steps, 2) for name, micro in spent.most_common(10)}


if __name__ == "__main__":
    command(main)
