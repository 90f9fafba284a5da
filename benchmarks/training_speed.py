"""Measure the training samples per second of every strategy.

Images are noise, because the cost of a convolution does not depend on its input. The strategies alternate, so that a
busy machine slows all of them equally. A sample is one step of one window of the new task (two cameras). It takes
minutes. It is one session and does not resume.

Example:
    python -m benchmarks.training_speed --config config/tiny.toml --out mine.json
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.output import add_out, command, make_parser, percentiles
from benchmarks.result_files import write_measurement
from m2distill_policy.config import load_config, to_dict
from m2distill_policy.contract import Text, libero_contract
from m2distill_policy.progress import ProgressBar
from training.lifelong.memory import Memory
from training.lifelong.stage import end_stage, train_stage
from training.lifelong.strategies import make_strategy, strategy_class, strategy_names
from training.models.resnet_t import ResNetT
from training.run_config import RunConfig
from training.studies.plan import noise

#: Strategies with a second stage.
IN_TURN = tuple(name for name in strategy_names() if not strategy_class(name).learns_jointly)
#: Number of demonstrations of each old task in memory if the configuration asks for none.
_DEMONSTRATIONS = 5


def main() -> None:
    """Measure, and write the result."""
    parser = make_parser(__doc__)
    parser.add_argument("--config", type=Path, default=Path("config/tiny.toml"), help="default: %(default)s")
    parser.add_argument("--text-size", type=int, default=384, help="size of a text embedding (default: %(default)s)")
    parser.add_argument(
        "--steps", type=int, default=6, help="timed steps of a strategy and round (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the configuration")
    add_out(parser)
    args = parser.parse_args()
    base = load_config(RunConfig, args.config, args.overrides)
    if not base.memory.demonstrations:  # er needs some
        args.overrides.append(f"memory.episodes={_DEMONSTRATIONS}")
        base = load_config(RunConfig, args.config, args.overrides)
    contract = libero_contract(base.image_size, Text("noise", "0", "none", 1.0, args.text_size))
    seconds: dict[str, list[float]] = {name: [] for name in IN_TURN}
    for _ in ProgressBar(iterable=range(args.rounds), unit="round"):
        for name in IN_TURN:
            config = load_config(
                RunConfig,
                args.config,
                [
                    *args.overrides,
                    f"strategy={name}",
                    f"optim.steps={args.steps + 2}",
                    "optim.checkpoint_seconds=1e9",
                    "ewc.batches=1",
                    # packnet allows no checkpoint candidate before it has pruned; nothing is evaluated here.
                    "evaluation.candidates=1",
                ],
            )
            memory = Memory(config.memory)
            memory.add(noise(contract, 1), np.random.default_rng(0))
            stamps: list[float] = []
            policy = ResNetT(config.network, contract)
            strategy = make_strategy(config, memory, contract.history)
            # The strategy saves the state that it needs from the first stage.
            end_stage(policy, strategy, noise(contract, 1), config, 0)
            with tempfile.TemporaryDirectory() as folder:
                train_stage(
                    policy,
                    strategy,
                    noise(contract, 0),
                    config,
                    1,
                    Path(folder),
                    lambda step, steps, terms, stamps=stamps: stamps.append(time.perf_counter()),  # type: ignore[misc]
                    lambda candidate: None,
                )
            seconds[name] += list(np.diff(stamps)[1:])
    samples = base.optim.batch * contract.history
    figures = {
        name: {
            "step_ms": percentiles(np.array(values)),
            "samples_a_second": round(samples / float(np.median(values)), 1),
        }
        for name, values in seconds.items()
    }
    fastest = float(np.median(seconds["sequential"]))
    for name, values in seconds.items():
        figures[name]["cost_beside_sequential"] = round(float(np.median(values)) / fastest, 2)
    write_measurement("training_speed", {**to_dict(base), "torch_threads": torch.get_num_threads()}, figures, args.out)


if __name__ == "__main__":
    command(main)
