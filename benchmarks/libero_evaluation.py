"""Compare the rollouts per minute of LIBERO's evaluation loop and of ours, with the same policy.

LIBERO's loop is that of ``lifelong/metric.py``, with ``OffScreenRenderEnv`` in ``SubprocVectorEnv`` and LIBERO's
initial states. Our loop is :class:`RolloutPool` with 1, 2 and 4 workers; its results must not depend on the number of
workers. Both run the same bundle in ONNX Runtime, so that only environments and loops are compared. A rollout ends
after ``--steps`` or with success. The two loops alternate, each in its own processes. It takes minutes per round; with
``--out``, finished rounds are kept in ``FILE.partial``, and the same command resumes.

Example:
    python -m benchmarks.libero_evaluation BUNDLE --processes 2 10 --rounds 1 --out mine.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.output import add_out, command, make_parser
from benchmarks.result_files import PartialFigures, write_measurement
from m2distill_policy.bundle import open_bundle
from m2distill_policy.errors import SimulationError
from m2distill_policy.evaluation.results import make_cells
from m2distill_policy.evaluation.rollouts import RolloutPool
from m2distill_policy.sim.libero import files
from m2distill_policy.sim.suites import suite_task

_WORKERS = (1, 2, 4)


def theirs(bundle: Path, suite: str, index: int, rollouts: int, steps: int, processes: int) -> dict[str, Any]:
    """Run LIBERO's loop. It needs its own process, because it imports LIBERO's whole package."""
    from m2distill_policy.observation import Observation
    from m2distill_policy.runtime.server import PolicyServer
    from m2distill_policy.runtime.watchdog import WatchLimits

    task = suite_task(suite, index)
    folder, assets = files.package_folder(), files.assets_folder()
    with tempfile.TemporaryDirectory() as config:
        places = {
            "bddl_files": folder / "bddl_files", "init_states": folder / "init_files", "benchmark_root": folder,
            "datasets": folder.parent / "datasets", "assets": assets,
        }  # fmt: skip
        Path(config, "config.yaml").write_text("".join(f"{name}: '{place}'\n" for name, place in places.items()))
        os.environ["LIBERO_CONFIG_PATH"] = config
        import libero.libero as package

        package._assets_path_cache = str(assets)
        from libero.libero.envs import OffScreenRenderEnv, SubprocVectorEnv

        size = open_bundle(bundle).contract.cameras[0].height
        arguments = {
            "bddl_file_name": str(files.bddl_file(suite, task.name)), "camera_heights": size, "camera_widths": size,
        }  # fmt: skip
        states = files.initial_states(task)
        begin = time.monotonic()
        env = SubprocVectorEnv([lambda: OffScreenRenderEnv(**arguments) for _ in range(processes)])
        servers = [
            PolicyServer(open_bundle(bundle), sampling="mode", watch=WatchLimits.lockstep()) for _ in range(processes)
        ]
        successes = taken = 0
        for start in range(0, rollouts, processes):
            env.reset()
            seen = env.set_init_state(states[np.arange(start, start + processes) % len(states)])
            for _ in range(5):
                seen, _, _, _ = env.step(np.zeros((processes, 7)))
            for server in servers:
                server.set_instruction(task.instruction)
                server.reset("a new rollout", seed=0, episode=start, is_stationary=True)
            dones = [False] * processes
            for step in range(steps):
                actions = []
                for server, view in zip(servers, seen, strict=True):
                    observation = Observation(
                        {
                            "agentview_rgb": np.ascontiguousarray(view["agentview_image"][::-1]),
                            "eye_in_hand_rgb": np.ascontiguousarray(view["robot0_eye_in_hand_image"][::-1]),
                        },
                        {
                            "joint_states": view["robot0_joint_pos"].astype(np.float32),
                            "gripper_states": view["robot0_gripper_qpos"].astype(np.float32),
                        },
                        step * 0.05,
                    )
                    actions.append(server.step(observation, observation.stamp).action)
                seen, _, done, _ = env.step(np.array(actions))
                taken += processes
                dones = [a or bool(b) for a, b in zip(dones, done, strict=True)]
                if all(dones):
                    break
            successes += sum(dones)
        seconds = time.monotonic() - begin
        env.close()
    return {"seconds": seconds, "successes": successes, "control_steps": taken, "processes": processes}


def ours(bundle: Path, suite: str, index: int, rollouts: int, steps: int, workers: int) -> dict[str, Any]:
    """Run our loop; the measured time includes the start and the end of the pool."""
    begin = time.monotonic()
    with RolloutPool(workers) as pool:
        results = pool.evaluate(bundle, make_cells(suite, [index], rollouts, horizon=steps), sampling="mode")
    seconds = time.monotonic() - begin
    errors = [result.error for result in results if result.error]
    if errors:
        raise SimulationError(f"a rollout ended in an error: {errors[0]}")
    return {
        "seconds": seconds,
        "successes": sum(bool(result.success) for result in results),
        "control_steps": sum(result.steps for result in results),
        "workers": workers,
        "each": [[bool(result.success), result.steps] for result in results],
    }


def in_own_process(args: argparse.Namespace, processes: int) -> dict[str, Any]:
    """Run :func:`theirs` in its own process."""
    words = [sys.executable, "-W", "ignore", "-m", "benchmarks.libero_evaluation", str(args.bundle)]
    words += ["--suite", args.suite, "--task", str(args.task), "--rollouts", str(args.rollouts)]
    words += ["--steps", str(args.steps), "--theirs", str(processes)]
    done = subprocess.run(words, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, check=False, text=True)
    if done.returncode:
        raise SimulationError(f"LIBERO's loop ended with code {done.returncode}; see its output above")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    """Measure, and write the result."""
    parser = make_parser(__doc__)
    parser.add_argument("bundle", type=Path, help="a bundle with the task's instruction")
    parser.add_argument("--suite", default="libero_object", help="default: %(default)s")
    parser.add_argument("--task", type=int, default=0, help="its index (default: %(default)s)")
    parser.add_argument("--rollouts", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=600, help="of a rollout, at most (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="default: %(default)s")
    parser.add_argument(
        "--processes",
        type=int,
        nargs="+",
        default=[2, 20],
        help="of LIBERO's loop, whose default is 20 (default: %(default)s)",
    )
    parser.add_argument("--theirs", type=int, help=argparse.SUPPRESS)
    add_out(parser)
    args = parser.parse_args()
    asked = (args.bundle, args.suite, args.task, args.rollouts, args.steps)
    if args.theirs:
        print(json.dumps(theirs(*asked, args.theirs)))
        return
    config = {"suite": args.suite, "task": args.task, "rollouts": args.rollouts, "steps": args.steps}
    partial = PartialFigures(args.out, {**config, "bundle": str(args.bundle), "processes": args.processes})
    for number in range(1, args.rounds + 1):
        print(f"round {number} of {args.rounds}", file=sys.stderr)
        if f"round {number}" not in partial.figures:
            found = {
                "theirs": [in_own_process(args, processes) for processes in args.processes],
                "ours": [ours(*asked, workers) for workers in _WORKERS],
            }
            partial.add(f"round {number}", found)
    rounds = [partial.figures[f"round {number}"] for number in range(1, args.rounds + 1)]
    each = [result.pop("each") for part in rounds for result in part["ours"]]
    per_minute = {
        side: max(60 * args.rollouts / result["seconds"] for part in rounds for result in part[side])
        for side in ("theirs", "ours")
    }
    figures = {
        "rollouts_a_minute_at_best": per_minute,
        "ratio": per_minute["ours"] / per_minute["theirs"],
        "same_with_any_number_of_workers": all(one == each[0] for one in each),
        "rounds": rounds,
    }
    write_measurement("libero_evaluation", config, figures, args.out)
    partial.remove()


if __name__ == "__main__":
    command(main)
