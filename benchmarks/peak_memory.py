"""Measure the peak memory of a run of ten tasks.

The ten files have as many demonstrations as LIBERO's, of the same length. Each image has a single colour, because
memory depends only on the size of the images. Every stage has two steps, but the demonstrations, the replay buffer, the
teacher and a whole batch take as much memory as in a long run. The peak is what the operating system reports for the
process that trains and exports. It takes minutes. It is one session and does not resume.

Example:
    python -m benchmarks.peak_memory --config config/paper.toml --tasks 3 --out mine.json
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.output import add_out, command, make_parser
from benchmarks.result_files import write_measurement
from m2distill_policy.config import load_config, to_dict
from m2distill_policy.contract import libero_contract
from m2distill_policy.demonstration_writer import DemonstrationWriter
from m2distill_policy.demonstrations import Episode, Recording, demonstration_path
from m2distill_policy.errors import TrainingError
from training.run_config import RunConfig


def demonstrate(folder: Path, task: int, episodes: int, steps: int, size: int) -> None:
    """Write one task's file. Each image has one colour, so that the file is small."""
    contract = libero_contract(size)
    writer = DemonstrationWriter(
        demonstration_path(folder, f"task_{task}"), instruction=f"do the thing number {task}", contract=contract
    )
    rng = np.random.default_rng(task)
    for number in range(episodes):
        colours = rng.integers(0, 256, (steps, 1, 1, 3), dtype=np.uint8)
        frames = np.broadcast_to(colours, (steps, size, size, 3))
        proprioception = {
            g.name: rng.uniform(g.low, g.high, (steps, g.size)).astype(np.float32) for g in contract.proprioception
        }
        actions = rng.uniform(-1, 1, (steps, 7)).astype(np.float32)
        episode = Episode(
            {c.name: frames for c in contract.cameras}, proprioception, actions, ee=np.zeros((steps, 6), np.float32)
        )
        writer.add(Recording(episode), number)
    writer.finish(list(range(episodes)), episodes)


def main() -> None:
    """Measure, and write the result."""
    parser = make_parser(__doc__)
    parser.add_argument("--config", type=Path, default=Path("config/paper.toml"), help="default: %(default)s")
    parser.add_argument("--tasks", type=int, default=10, help="default: %(default)s")
    parser.add_argument("--length", type=int, default=150, help="steps of a demonstration (default: %(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the configuration")
    add_out(parser)
    args = parser.parse_args()
    settings = [
        "suite=files", f"tasks={list(range(args.tasks))}", "text_encoder=minilm", "evaluation.rollouts=0",
        "evaluation.candidates=1", "optim.steps=2", "memory.episodes=5", "memory.instructions=true", *args.overrides,
    ]  # fmt: skip
    config = load_config(RunConfig, args.config, settings)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for task in range(args.tasks):
            print(f"demonstrations of task {task + 1} of {args.tasks}", file=sys.stderr, flush=True)
            demonstrate(folder / "data", task, config.episodes, args.length, config.image_size)
        begin = time.monotonic()
        process = subprocess.Popen(
            [
                sys.executable, "-m", "m2distill_policy", "train", "--config", str(args.config),
                "--data", str(folder / "data"), "--out", str(folder / "run"), *settings,
            ],
            stdout=sys.stderr,
        )  # fmt: skip
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise TrainingError(f"the run ended with code {os.waitstatus_to_exitcode(status)}; see its output above")
        figures = {
            "peak_gib": round(usage.ru_maxrss / 2**20, 2),
            "demonstrations_of_a_task_gib": round(
                config.episodes * args.length * 2 * 3 * config.image_size**2 / 2**30, 2
            ),
            "minutes": round((time.monotonic() - begin) / 60, 1),
        }
    write_measurement("peak_memory", to_dict(config), figures, args.out)


if __name__ == "__main__":
    command(main)
