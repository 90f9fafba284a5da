"""Measure the operations of a training step, the hardware's peak rates, and where the time goes.

torch's ``FlopCounterMode`` counts the operations (a multiplication and an addition are two). The hardware's rates
come from one large matrix product and one convolution of layer 1 (forward, gradient of weights, gradient of images)
in the step's precision, and from a memory copy. The shares of time come from the profiler, in a separate step. Images
are noise: the cost of a convolution does not depend on its input. It takes a minute. It is one session and does not
resume.

Example:
    python -m benchmarks.roofline --config config/tiny.toml --text-size 384 --out mine.json
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.output import add_out, command, make_parser
from benchmarks.result_files import write_measurement
from m2distill_policy.config import load_config, to_dict
from m2distill_policy.contract import Text, libero_contract
from m2distill_policy.progress import ProgressBar
from training.allocator import keep_freed_memory
from training.lifelong.memory import Memory
from training.lifelong.stage import Learner, pick_device, pick_precision
from training.lifelong.strategies import make_strategy
from training.models.resnet_t import ResNetT
from training.run_config import RunConfig
from training.studies.plan import noise

#: Group of operators -> parts of the names of its operators. An operator belongs to the first group that matches.
GROUPS = (
    ("convolution, backward", ("convolution_backward",)),
    ("convolution", ("convolution",)),
    ("batch norm", ("batch_norm",)),
    ("matrix products", ("mm", "linear")),
    ("rectifier, pooling, softmax", ("threshold", "clamp_min", "relu", "max_pool", "softmax")),
)


def group(operator: str) -> str:
    """Return the group of an operator."""
    return next((name for name, parts in GROUPS if any(part in operator for part in parts)), "all else")


def hardware(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Measure the hardware's rates.

    Returns:
        GFLOP/s of a product of two 2048 x 2048 matrices, and of 3 x 3 convolutions of 64 channels on 64
        maps of 32 x 32. GB/s of a copy, reading and writing together.
    """
    a, b = (torch.randn(2048, 2048, device=device).to(dtype) for _ in range(2))
    source = torch.randn(2**26, device=device)
    target = torch.empty_like(source)

    def best(work: object, times: int) -> float:
        assert callable(work)
        found = float("inf")
        for _ in range(times):
            begin = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize()
            found = min(found, time.perf_counter() - begin)
        return found

    x, w, g = (
        torch.randn(shape, device=device).to(dtype).to(memory_format=torch.channels_last)
        for shape in ((64, 64, 32, 32), (64, 64, 3, 3), (64, 64, 32, 32))
    )
    flop = 2 * 9 * 64 * 64 * 32 * 32 * 64

    def backward(*wanted: bool) -> None:
        torch.ops.aten.convolution_backward(g, x, w, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, wanted)

    return {
        "convolution_gflop_s": round(flop / best(lambda: torch.conv2d(x, w, padding=1), 8) / 1e9, 1),
        "convolution_by_images_gflop_s": round(flop / best(lambda: backward(True, False, False), 8) / 1e9, 1),
        "convolution_by_weights_gflop_s": round(flop / best(lambda: backward(False, True, False), 8) / 1e9, 1),
        "matrix_product_gflop_s": round(2 * 2048**3 / best(lambda: a @ b, 8) / 1e9, 1),
        "copy_gb_s": round(2 * 4 * 2**26 / best(lambda: target.copy_(source), 8) / 1e9, 1),
    }


def main() -> None:
    """Measure, and write the result."""
    parser = make_parser(__doc__)
    parser.add_argument("--config", type=Path, default=Path("config/paper.toml"), help="default: %(default)s")
    parser.add_argument("--text-size", type=int, default=768, help="size of a text embedding (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=3, help="timed steps (default: %(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the configuration")
    add_out(parser)
    args = parser.parse_args()
    config = load_config(RunConfig, args.config, ["strategy=sequential", *args.overrides])
    contract = libero_contract(config.image_size, Text("noise", "0", "none", 1.0, args.text_size))
    device = pick_device()
    dtype = pick_precision(config.optim.precision, device) or torch.float32
    rates = hardware(device, dtype)
    keep_freed_memory()
    torch.manual_seed(config.seed)
    policy = ResNetT(config.network, contract).to(device)
    learner = Learner(
        policy, make_strategy(config, Memory(config.memory), contract.history), noise(contract, 0), config, 0
    )
    optimiser = torch.optim.AdamW(policy.parameters(), lr=config.optim.lr)
    with FlopCounterMode(display=False) as counted:
        learner.step(0, 100, optimiser)
    seconds = []
    for step in ProgressBar(iterable=range(1, 1 + args.steps), unit="step"):
        begin = time.perf_counter()
        learner.step(step, 100, optimiser)
        seconds.append(time.perf_counter() - begin)
    shares: dict[str, float] = {}
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        learner.step(1 + args.steps, 100, optimiser)
    for event in profiled.key_averages():
        shares[group(event.key)] = shares.get(group(event.key), 0.0) + event.self_cpu_time_total
    total, best = sum(shares.values()), min(seconds)
    flop = counted.get_total_flops()
    figures = {
        "gflop_a_step": round(flop / 1e9, 1),
        "step_s": [round(value, 3) for value in seconds],
        "gflop_s": round(flop / best / 1e9, 1),
        **rates,
        "share_of_the_matrix_product": round(flop / best / 1e9 / rates["matrix_product_gflop_s"], 3),
        "share_of_time": {name: round(value / total, 3) for name, value in sorted(shares.items(), key=lambda i: -i[1])},
    }
    about = {"torch_threads": torch.get_num_threads(), "precision": str(dtype)}
    write_measurement("roofline", {**to_dict(config), **about}, figures, args.out)


if __name__ == "__main__":
    command(main)
