"""Run the ROS 2 node for a long time with hot swaps.

The node runs in its own process. This process publishes two cameras and the joints at the contract's rate and
requests a hot swap between two bundles every few seconds. It records which observations were answered, by which
network, when the twist arrived, and the node's memory. An observation is missed if no command answers it before the
next observation is sent. The node's own latencies come from /diagnostics. They last from the entry of the callback that
completes an observation to the return of the last publish. Images are noise. It needs ROS 2 and ros2_ws sourced, or the
environment of ``make test-ros``. It is one session and does not resume.

Example:
    eval "$(scripts/ros_env.sh .venv-ros .venv/bin/python)" && "$ROS_PYTHON" -m benchmarks.ros_soak --seconds 60
"""

from __future__ import annotations

import itertools
import os
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import rclpy

from benchmarks.command_latency import random_bundle
from benchmarks.output import add_out, command, make_parser, percentiles
from benchmarks.result_files import write_measurement
from benchmarks.ros_robot import Robot, node
from m2distill_policy.bundle import open_bundle
from m2distill_policy.errors import TransportError
from m2distill_policy.progress import ProgressBar
from m2distill_policy.runtime.status import StatusCode


def resident(pid: int) -> float:
    """Return the resident memory of a process, in MiB."""
    text = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmRSS")) / 1024


def main() -> None:
    """Measure, and write the result."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--config",
        type=Path,
        default=Path("config/tiny.toml"),
        help="sizes of the random networks (default: %(default)s)",
    )
    parser.add_argument(
        "--bundles", type=Path, nargs=2, help="two bundles to swap (default: random networks, which need torch)"
    )
    parser.add_argument("--seconds", type=float, default=600.0, help="duration (default: %(default)s)")
    parser.add_argument("--swaps", type=int, default=200, help="hot swaps (default: %(default)s)")
    parser.add_argument("--height", type=int, default=480, help="of the images (default: %(default)s)")
    parser.add_argument("--width", type=int, default=640, help="of the images (default: %(default)s)")
    add_out(parser)
    args = parser.parse_args()
    rclpy.init()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundles = args.bundles or [random_bundle(folder, seed, args.config) for seed in (0, 1)]
        opened = [open_bundle(path) for path in bundles]
        contract = opened[0].contract
        begin = time.monotonic()
        with node(bundles[0], folder / "node.log") as process:
            Robot.image_size = (args.height, args.width)
            robot = Robot(contract)
            robot.bring_up()
            robot.drive_until(StatusCode.RUNNING)
            robot.drive(3.0)
            first = min(at for at, _ in robot.answers.values()) - begin
            warm = set(robot.sent)
            robot.twists.clear()
            memory = drive(robot, args.seconds, list(bundles), args.swaps, process)
    rclpy.shutdown()
    measured = sorted(stamp for stamp in robot.sent if stamp not in warm)
    missed, after = [], []
    for this, following in zip(measured, [*measured[1:], None], strict=True):
        due = robot.sent[following] if following is not None else float("inf")
        if this not in robot.answers or robot.answers[this][0] > due:
            missed.append(round((this - measured[0]) / 1e9, 2))
        else:
            after.append(robot.answers[this][0] - robot.sent[this])
    steps = np.array([robot.steps[stamp] for stamp in measured if stamp in robot.steps])
    whole = np.array(robot.cycles)
    write_measurement(
        "ros_soak",
        {
            "bundles": [bundle.identifier for bundle in opened],
            "views": len(contract.cameras),
            "image": [args.height, args.width],
            "network_image": list(contract.cameras[0].shape[:2]),
            "rate_hz": contract.rate_hz,
            "seconds": args.seconds,
            "rmw": rclpy.get_rmw_implementation_identifier(),
            "load_average": round(os.getloadavg()[0], 1),
        },
        {
            "observations": len(measured),
            "missed": len(missed),
            "missed_after_s": missed[:50],
            "twists": len(robot.twists),
            "swaps_asked": args.swaps,
            "swaps_done": sum(response.success for response in robot.swaps),
            "refusals": [response.message for response in robot.swaps if not response.success][:5],
            "answered_by": dict(Counter(robot.answers[s][1] for s in measured if s in robot.answers)),
            "changes_of_network": changes([robot.answers[s][1] for s in measured if s in robot.answers]),
            "first_command_s": round(first, 2),
            "policy_step_ms": percentiles(steps),
            "whole_cycle_ms": {
                "median_of_medians": round(float(np.median(whole[:, 0])), 2),
                "median_of_p99": round(float(np.median(whole[:, 2])), 2),
                "worst_p99": round(float(whole[:, 2].max()), 2),
            },
            "there_and_back_ms": percentiles(np.array(after)),
            "memory_mib": {
                "before": round(memory[0], 1),
                # During a swap there are two networks for a moment. What matters is growth after the first swap.
                "at_each_fifth": [round(memory[len(memory) * i // 5 - 1], 1) for i in range(1, 6)],
                "most": round(max(memory), 1),
            },
        },
        args.out,
    )


def changes(bundles: list[str]) -> int:
    """Count how often the answering network changes."""
    return sum(a != b for a, b in itertools.pairwise(bundles))


def drive(
    robot: Robot, seconds: float, bundles: list[Path], swaps: int, process: subprocess.Popen[bytes]
) -> list[float]:
    """Publish for ``seconds`` and request ``swaps`` hot swaps.

    Returns:
        The node's memory in MiB, after every 100 observations.
    """
    period = robot.contract.period
    count = round(seconds / period)
    memory = [resident(process.pid)]
    due = time.monotonic()
    with ProgressBar(total=count, unit="observation", disable=count < 200) as bar:
        for i in range(count):
            if swaps and (i * swaps) // count != ((i - 1) * swaps) // count:
                robot.ask_for_swap(bundles[((i * swaps) // count + 1) % 2])
            if i % 100 == 0:
                memory.append(resident(process.pid))
            robot.publish(i)
            bar.update()
            due = max(due + period, time.monotonic() + period / 2)
            while (left := due - time.monotonic()) > 0:
                robot.executor.spin_once(timeout_sec=left)
            if process.poll() is not None:
                raise TransportError(f"the node ended with {process.returncode} after {i * period:.1f} s")
    return memory


if __name__ == "__main__":
    command(main)
