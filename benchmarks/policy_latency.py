"""Latency of one policy step, ONNX Runtime against torch, interleaved: ``python -m benchmarks.policy_latency``.

The torch side does what LIBERO's ``get_action`` does: encode the newest frames, keep the tokens of earlier steps, run
the transformer over the window. Both use the same number of threads. Frames are noise.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.output import add_out, percentiles, write
from benchmarks.training_speed import noise
from m2distill_policy.bundle import open_bundle
from m2distill_policy.config import load_config, to_dict
from m2distill_policy.contract import Text, libero_contract
from m2distill_policy.observation import Observation
from m2distill_policy.runtime.server import PolicyServer
from training.export import export_bundle
from training.models.resnet_t import ResNetT
from training.run_config import RunConfig


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("config/tiny.toml"))
    parser.add_argument("--text-size", type=int, default=384)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    add_out(parser)
    args = parser.parse_args()
    config = load_config(RunConfig, args.config, args.overrides)
    contract = libero_contract(config.image_size, Text("noise", "0", "none", 1.0, args.text_size))
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    policy = ResNetT(config.network, contract).eval()
    data = noise(contract, 0)
    with tempfile.TemporaryDirectory() as folder:
        export_bundle(
            policy,
            Path(folder) / "bundle",
            tasks=[{"name": "noise", "instruction": "noise"}],
            embeddings=data.embedding[None],
            check_on=[data],
            provenance={},
        )
        server = PolicyServer(open_bundle(Path(folder) / "bundle"), threads=args.threads)
    server.set_instruction("noise")
    with torch.inference_mode():
        text_token, film = policy.condition(torch.from_numpy(data.embedding)[None])
    kept: list[torch.Tensor] = []
    ours, theirs = [], []
    for t in range(args.steps):
        row = t % data.steps
        frames = {name: f[row] for name, f in data.images.items()}
        readings = {name: v[row] * 0.01 for name, v in data.proprioception.items()}
        observation = Observation(frames, readings, t * contract.period)
        begin = time.perf_counter()
        server.step(observation, t * contract.period)
        ours.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        with torch.inference_mode():
            tokens = policy.step_tokens(
                text_token,
                film,
                [torch.from_numpy(f).permute(2, 0, 1)[None].float() / 255 for f in frames.values()],
                [torch.from_numpy(v)[None] for v in readings.values()],
            )
            kept = [*kept, tokens][-contract.history :]
            length = len(kept)
            size = length * policy.tokens_per_step
            features = policy.decode(torch.stack(kept, 1), policy.positions[:length], policy.mask[:size, :size])
            policy.head(features[:, -1]).sample(1)
        theirs.append(time.perf_counter() - begin)
    warm = 20
    a, b = np.array(ours[warm:]), np.array(theirs[warm:])
    write(
        "policy_latency",
        {**to_dict(config.network), "image_size": config.image_size, "threads": args.threads, "steps": args.steps},
        {
            "onnxruntime_ms": percentiles(a),
            "torch_ms": percentiles(b),
            "torch_over_onnxruntime": round(float(np.median(b) / np.median(a)), 2),
        },
        args.out,
    )


if __name__ == "__main__":
    main()
