"""Compare the speed of our training loop with LIBERO's.

Both have the same network, batch, images and cores. They alternate, one round each, in their own processes. LIBERO's
loop trains its policy with its augmentation and optimiser, on batches of robomimic's ``SequenceDataset`` from a
``DataLoader`` of four workers, as in ``libero/lifelong``. Our loop is a stage of sequential fine-tuning, because this
is what LIBERO's loop does. A sample is one window of ten steps and two views. See :mod:`benchmarks.libero_policy` for
FOLDER. The benchmark needs ``robomimic==0.2.0``, which is LIBERO's version, and torchvision (an old version can be
imported without its compiled part, which is not used).

FILE has demonstrations of one task in LIBERO's layout, for example from ``m2distill demos --tasks 0 --episodes 20
--size 128``. Our files are compressed and LIBERO's are not, so LIBERO's loop reads an uncompressed copy. It takes
minutes; it is one session and does not resume.

Example:
    python -m benchmarks.libero_training --libero FOLDER --data FILE --steps 3 --out mine.json
"""

from __future__ import annotations

import importlib
import multiprocessing
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch.utils.data import DataLoader, RandomSampler

from benchmarks.libero_policy import libero_policy
from benchmarks.output import add_out, command, make_parser
from benchmarks.result_files import write_measurement
from m2distill_policy.config import load_config, to_dict
from m2distill_policy.contract import Contract, Text, libero_contract
from m2distill_policy.demonstrations import DemonstrationFile
from m2distill_policy.errors import TrainingError
from training.data.task_data import TaskData, load_task
from training.lifelong.memory import Memory
from training.lifelong.stage import pick_device, pick_precision, train_stage
from training.lifelong.strategies import make_strategy
from training.models.resnet_t import ResNetT
from training.run_config import RunConfig

#: LIBERO's ``train.num_workers``.
LOADERS = 4


class Theirs:
    """LIBERO's loop: ``Sequential.observe`` over the batches of its ``DataLoader``."""

    def __init__(self, folder: Path, contract: Contract, text_size: int, file: Path, config: RunConfig) -> None:
        self.policy = libero_policy(folder, contract, text_size, augment=True).train()
        try:
            datasets = importlib.import_module("libero.lifelong.datasets")
        except ModuleNotFoundError as error:
            raise TrainingError(f"LIBERO's loop needs the package '{error.name}'; install it") from error
        if not hasattr(np, "bool"):
            np.bool = bool  # type: ignore[attr-defined]  # robomimic 0.2.0 is older than NumPy 1.24, which dropped it
        self._map = importlib.import_module("robomimic.utils.tensor_utils").map_tensor
        modality = {"rgb": list(contract.camera_names), "low_dim": list(contract.proprioception_names), "depth": []}
        sequences, _ = datasets.get_dataset(str(file), modality, seq_len=contract.history)
        self.dataset = datasets.SequenceVLDataset(sequences, torch.randn(text_size))
        self.config = config.optim
        self.optimiser = torch.optim.AdamW(
            self.policy.parameters(), lr=self.config.lr, betas=(0.9, 0.999), weight_decay=self.config.weight_decay
        )

    def round(self, steps: int) -> None:
        """Do ``steps`` training steps with a new loader that prepares exactly as many batches."""
        sampler = RandomSampler(self.dataset, replacement=True, num_samples=steps * self.config.batch)
        loader = DataLoader(
            self.dataset,
            batch_size=self.config.batch,
            num_workers=LOADERS,
            sampler=sampler,
            multiprocessing_context="fork",  # as in LIBERO; in this spawned process, the default would be to spawn
        )
        for data in loader:
            self.observe(data)

    def observe(self, data: Any) -> float:
        """Do one training step, as ``libero.lifelong.algos.base.Sequential.observe`` does."""
        data = self._map(data, lambda x: x.to(self.policy.device))
        self.optimiser.zero_grad()
        loss = self.policy.compute_loss(data)
        (1.0 * loss).backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.clip)
        self.optimiser.step()
        return float(loss.item())


class Ours:
    """A stage of sequential fine-tuning."""

    def __init__(self, contract: Contract, data: TaskData, config: RunConfig) -> None:
        self.data, self.config = data, config
        self.policy = ResNetT(config.network, contract).to(pick_device())
        self.strategy = make_strategy(config, Memory(config.memory), contract.history)

    def round(self, steps: int) -> None:
        """Do ``steps`` training steps; the configuration must have the same number."""
        assert steps == self.config.optim.steps
        with tempfile.TemporaryDirectory() as folder:
            train_stage(
                self.policy, self.strategy, self.data, self.config, 0, Path(folder), lambda *_: None, lambda _: None
            )


def serve(name: str, pipe: Connection, folder: Path, file: Path, text_size: int, config: RunConfig) -> None:
    """Run one of the two loops in its own process.

    It repeatedly receives a number of steps, does them, and sends the seconds that they took.
    """
    contract = libero_contract(config.image_size, Text("noise", "0", "none", 1.0, text_size))
    if name == "libero":
        side: Theirs | Ours = Theirs(folder, contract, text_size, file, config)
    else:
        embedding = np.random.default_rng(0).normal(size=text_size).astype(np.float32)
        side = Ours(contract, load_task(file, DemonstrationFile(file).instruction, embedding, contract), config)
    pipe.send(0.0)
    while True:
        steps = pipe.recv()
        begin = time.perf_counter()
        side.round(steps)
        pipe.send(time.perf_counter() - begin)


def answer(name: str, pipe: Connection) -> float:
    """Return the seconds that the process of a loop sends.

    Raises:
        TrainingError: The process has ended.
    """
    try:
        return float(pipe.recv())
    except EOFError:
        raise TrainingError(f"the process of '{name}' ended; see its output above") from None


def uncompressed(source: Path, target: Path) -> None:
    """Write an uncompressed copy of a demonstration file, with contiguous arrays as in LIBERO's own files."""

    def copy(name: str, item: h5py.Group | h5py.Dataset) -> None:
        made = new.create_dataset(name, data=item[()]) if isinstance(item, h5py.Dataset) else new.require_group(name)
        for key, value in item.attrs.items():
            made.attrs[key] = value

    with h5py.File(source, "r") as old, h5py.File(target, "w") as new:
        old.visititems(copy)


def main() -> None:
    """Measure, and write the result."""
    parser = make_parser(__doc__)
    parser.add_argument("--libero", type=Path, metavar="FOLDER", required=True, help="a clone of LIBERO's repository")
    parser.add_argument("--data", type=Path, metavar="FILE", required=True, help="demonstrations of one task")
    parser.add_argument("--config", type=Path, default=Path("config/paper.toml"), help="default: %(default)s")
    parser.add_argument("--text-size", type=int, default=768, help="size of a text embedding (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=8, help="of a round and side (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the configuration of ours")
    add_out(parser)
    args = parser.parse_args()
    if not args.data.is_file():
        raise TrainingError(f"{args.data} is not a file; give one task's demonstrations (see m2distill demos)")
    settings = [*args.overrides, "strategy=sequential", f"optim.steps={args.steps}", "evaluation.candidates=1"]
    config = load_config(RunConfig, args.config, [*settings, "optim.checkpoint_seconds=1e9"])
    seconds: dict[str, list[float]] = {"libero": [], "ours": []}
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / args.data.name
        uncompressed(args.data, copy)
        pipes: dict[str, Connection] = {}
        processes = []
        try:
            for name, file in zip(seconds, (copy, args.data), strict=True):
                pipes[name], end = spawn.Pipe()
                words = (name, end, args.libero, file, args.text_size, config)
                processes.append(spawn.Process(target=serve, args=words))
                processes[-1].start()
                end.close()
                answer(name, pipes[name])
            for number in range(args.rounds + 1):
                for name, pipe in pipes.items():
                    pipe.send(args.steps)
                    took = answer(name, pipe)
                    if number:  # the first round warms up
                        seconds[name].append(took)
                    print(f"round {number} {name}: {took / args.steps:.2f} s a step", file=sys.stderr, flush=True)
        finally:
            for process in processes:
                process.terminate()
                process.join()
    rates = {name: [config.optim.batch * args.steps / value for value in values] for name, values in seconds.items()}
    figures = {
        "samples_a_second": {name: [round(rate, 2) for rate in values] for name, values in rates.items()},
        "median": {name: round(float(np.median(values)), 2) for name, values in rates.items()},
        "ours_over_libero": round(float(np.median(rates["ours"]) / np.median(rates["libero"])), 2),
        "ours_over_libero_by_round": [round(o / t, 2) for o, t in zip(rates["ours"], rates["libero"], strict=True)],
    }
    about = {
        "torch_threads": torch.get_num_threads(),
        "data_sha256": DemonstrationFile(args.data).sha256(),
        "precision": str(pick_precision(config.optim.precision, pick_device())),
    }
    write_measurement("libero_training", {**to_dict(config), **about, "loader_workers": LOADERS}, figures, args.out)


if __name__ == "__main__":
    command(main)
