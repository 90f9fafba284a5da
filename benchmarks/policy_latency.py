"""Measure the latency of a policy step: ONNX Runtime in fp32 and int8, and torch.

The variants run alternately on the same inputs, with the same number of threads. The torch variant does the same as
LIBERO's ``get_action``: it encodes the newest frames, keeps the tokens of earlier steps, runs the transformer over the
window, and samples an action. ``--libero FOLDER`` (see :mod:`benchmarks.libero_policy`) adds LIBERO's own code.
``--profile`` adds the time of the slowest ONNX Runtime operators. Images are noise, and the weights are random. It
takes a minute. It is one session and does not resume.

Example:
    python -m benchmarks.policy_latency --config config/paper.toml --text-size 768 --out mine.json
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
from m2distill_policy.bundle import open_bundle
from m2distill_policy.config import load_config, to_dict
from m2distill_policy.contract import Contract, Text, libero_contract
from m2distill_policy.observation import Observation
from m2distill_policy.progress import ProgressBar
from m2distill_policy.runtime.server import PolicyServer
from training.data.task_data import TaskData
from training.export import export_bundle, replay_of
from training.models.resnet_t import ResNetT
from training.run_config import RunConfig
from training.studies.plan import noise

#: Number of warm-up steps, which are not counted.
_WARM = 20


def main() -> None:
    """Measure, and write the result."""
    parser = make_parser(__doc__)
    parser.add_argument("--config", type=Path, default=Path("config/tiny.toml"), help="default: %(default)s")
    parser.add_argument("--text-size", type=int, default=384, help="size of a text embedding (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=300, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument(
        "--libero", type=Path, metavar="FOLDER", help="a clone of LIBERO's repository; also time its get_action"
    )
    parser.add_argument("--profile", action="store_true", help="add the time of the slowest kinds of operators")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the configuration")
    add_out(parser)
    args = parser.parse_args()
    config = load_config(RunConfig, args.config, args.overrides)
    contract = libero_contract(config.image_size, Text("noise", "0", "none", 1.0, args.text_size))
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    policy = ResNetT(config.network, contract).eval()
    data = noise(contract, 0)
    profiles: dict[str, dict[str, float]] = {}
    variants: dict[str, Callable[[Observation, float], object]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for precision in ("fp32", "int8"):
            variants[f"onnxruntime_{precision}"] = _served(policy, data, Path(folder), precision, args.threads)
            if args.profile:
                graphs = open_bundle(Path(folder) / precision).graphs
                profiles[precision] = _profile(policy, dict(graphs), data, Path(folder), args.threads)
    variants["torch"] = _in_torch(policy, data, contract)
    if args.libero is not None:
        from benchmarks.libero_policy import libero_get_action

        get_action = libero_get_action(args.libero, contract, args.text_size)
        embedding = torch.from_numpy(data.embedding)
        variants["libero_get_action"] = lambda observation, now: get_action(observation, embedding)
    taken: dict[str, list[float]] = {name: [] for name in variants}
    for t in ProgressBar(iterable=range(args.steps), unit="step"):
        row = t % data.steps
        frames = {name: f[row] for name, f in data.images.items()}
        proprioception = {name: v[row] * 0.01 for name, v in data.proprioception.items()}
        observation = Observation(frames, proprioception, t * contract.period)
        for name, answer in variants.items():
            begin = time.perf_counter()
            answer(observation, t * contract.period)
            taken[name].append(time.perf_counter() - begin)
    counted = {name: np.array(seconds[_WARM:]) for name, seconds in taken.items()}
    median = {name: float(np.median(seconds)) for name, seconds in counted.items()}
    slow = [name for name in variants if not name.startswith("onnxruntime")]
    write_measurement(
        "policy_latency",
        {**to_dict(config.network), "image_size": config.image_size, "threads": args.threads, "steps": args.steps},
        {
            **{f"{name}_ms": percentiles(seconds) for name, seconds in counted.items()},
            **{
                f"{other}_over_{ours}": round(median[other] / median[ours], 2)
                for other in slow
                for ours in variants
                if ours not in slow
            },
            **({"profile_ms": profiles} if profiles else {}),
        },
        args.out,
    )


def _served(
    policy: ResNetT, data: TaskData, folder: Path, precision: str, threads: int
) -> Callable[[Observation, float], object]:
    """Return a function that does a step of the policy server: checks, network, sampling, safety."""
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
    """Return a function that does the same step as LIBERO's ``get_action``, with our network."""
    with torch.inference_mode():
        text_token, film = policy.condition(torch.from_numpy(data.embedding)[None])
    tokens_so_far: list[torch.Tensor] = []

    def step(observation: Observation, now: float) -> object:
        with torch.inference_mode():
            tokens = policy.step_tokens(
                text_token,
                film,
                [torch.from_numpy(f).permute(2, 0, 1)[None].float() / 255 for f in observation.images.values()],
                [torch.from_numpy(v)[None] for v in observation.proprioception.values()],
            )
            tokens_so_far.append(tokens)
            del tokens_so_far[: -contract.history]
            length = len(tokens_so_far)
            size = length * policy.tokens_per_step
            features = policy.decode(
                torch.stack(tokens_so_far, 1), policy.positions[:length], policy.mask[:size, :size]
            )
            return policy.head(features[:, -1]).sample(1)

    return step


def _profile(policy: ResNetT, graphs: dict[str, bytes], data: TaskData, folder: Path, threads: int) -> dict[str, float]:
    """Return the milliseconds per step of the ten slowest kinds of ONNX Runtime operators."""
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
