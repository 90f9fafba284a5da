"""Measure the command latency over DDS between two processes.

``m2distill serve`` runs in its own process. This process publishes two cameras and the joints at the contract's rate,
as a robot does, and records when the action for each observation arrives. The latency is the time from handing the
observation's last message to DDS until the action arrives, by this process's monotonic clock. Images are noise. With
``--swap``, a second bundle appears in the watched folder after half of the time; ``unanswered`` is the number of
observations without an action. The image serialiser is measured as well. It is one session and does not resume.

Example:
    python -m benchmarks.command_latency --seconds 300 --swap --out mine.json
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.child import child
from benchmarks.output import add_out, command, make_parser, percentiles
from benchmarks.result_files import write_measurement
from m2distill_policy.bundle import open_bundle
from m2distill_policy.contract import Contract
from m2distill_policy.dds.domain import reserve_domain
from m2distill_policy.dds.images import Image
from m2distill_policy.dds.m2distill_msgs import PolicyAction, PolicyStatus
from m2distill_policy.dds.participant import Participant, Reader, Waiter, Writer
from m2distill_policy.dds.types import Header, JointState, Time
from m2distill_policy.errors import TransportError
from m2distill_policy.node import topics
from m2distill_policy.node.messages import optical_frame
from m2distill_policy.progress import ProgressBar

_MAIN = "import sys; from m2distill_policy.cli import main; sys.exit(main(sys.argv[1:]))"
_START = 60.0


class Publisher:
    """The robot's side: it publishes observations and collects the actions.

    Attributes:
        sent: Stamp (ns) -> monotonic time (s) after the observation's last message.
        answers: Stamp (ns) -> monotonic time (s) of the action's arrival, and the action's bundle.
        steps: Stamp (ns) -> seconds that the step took in the policy server.
        idle: Number of cycles without an observation since the first action.
        late: Number of observations that this process sent over half a period late, because the machine was busy.
    """

    def __init__(self, participant: Participant, contract: Contract, height: int, width: int) -> None:
        rng = np.random.default_rng(0)
        self._images = rng.integers(0, 256, (8, height, width, 3), dtype=np.uint8)
        self._views: dict[str, Writer[Image]] = {
            name: participant.writer(topics.camera_topic(name), Image, depth=2) for name in contract.camera_names
        }
        self._names = [entry for group in contract.proprioception for entry in group.entries]
        self._joints = participant.writer(topics.JOINT_STATES, JointState)
        self._actions: Reader[PolicyAction] = participant.reader(topics.ACTION, PolicyAction, depth=100)
        self._statuses: Reader[PolicyStatus] = participant.reader(topics.STATUS, PolicyStatus, depth=100)
        self._waiter: Waiter = participant.waiter([self._actions])
        self._participant = participant
        self.sent: dict[int, float] = {}
        self.answers: dict[int, tuple[float, str]] = {}
        self.steps: dict[int, float] = {}
        self.idle = 0
        self.late = 0

    def connect(self) -> None:
        """Wait until the policy is connected."""
        endpoints: list[Reader[Any] | Writer[Any]] = [
            *self._views.values(),
            self._joints,
            self._actions,
            self._statuses,
        ]
        self._participant.wait_for_peers(endpoints, _START, "'m2distill serve' was started by this program")

    def run(self, seconds: float, period: float, half_way: Callable[[], None] = lambda: None) -> None:
        """Publish one observation per period for ``seconds``; call ``half_way`` after half of the observations."""
        due = time.monotonic()
        count = round(seconds / period)
        for i in ProgressBar(iterable=range(count), unit="observation", disable=count < 200):
            if i == count // 2:
                half_way()
            self._publish(i)
            now = time.monotonic()
            # Like a camera, drop observations that cannot be sent in time instead of sending them in a burst.
            self.late += now - due > period / 2
            due = max(due, now - period / 2) + period
            while (left := due - time.monotonic()) > 0:
                self._waiter.wait(left)
                self._collect()

    def _publish(self, i: int) -> None:
        stamp = time.time_ns()
        at = Time.from_nanoseconds(stamp)
        for name, writer in self._views.items():
            writer.write(Image.from_rgb(self._images[i % len(self._images)], at, optical_frame(name)))
        # The joints move only a little, because with larger motion repeated images would count as a frozen camera.
        self._joints.write(JointState(Header(at, "base"), self._names, [0.01 * np.sin(i / 10)] * len(self._names)))
        self.sent[stamp] = time.monotonic()

    def _collect(self) -> None:
        for action in self._actions.take():
            self.answers[action.header.stamp.nanoseconds] = (time.monotonic(), action.bundle)
        for status in self._statuses.take():
            stamp = status.header.stamp.nanoseconds
            if stamp:
                self.steps[stamp] = status.latency
            else:
                self.idle += bool(self.answers)


@contextlib.contextmanager
def served(bundle: Path, watched: Path, domain: int, log: Path, more: list[str]) -> Iterator[None]:
    """Run ``m2distill serve`` in its own process; SIGTERM ends it."""
    instruction = open_bundle(bundle).instructions[0]
    arguments = ["serve", bundle, "--instruction", instruction, "--watch", watched, "--swap-when", "now"]
    with child([sys.executable, "-c", _MAIN, *arguments, "--domain", domain, *more], log):
        yield


def random_bundle(folder: Path, seed: int, config: Path) -> Path:
    """Write a bundle with random weights and the network sizes in ``config``. This needs torch."""
    import torch

    from m2distill_policy.config import load_config
    from m2distill_policy.contract import Text, libero_contract
    from training.export import export_bundle
    from training.models.resnet_t import ResNetT
    from training.run_config import RunConfig
    from training.studies.plan import noise

    run = load_config(RunConfig, config)
    contract = libero_contract(run.image_size, Text("noise", "0", "none", 1.0, 384))
    torch.manual_seed(seed)
    data = noise(contract, 0)
    path = folder / f"bundle-{seed}"
    export_bundle(
        ResNetT(run.network, contract).eval(),
        path,
        tasks=[{"name": "noise", "instruction": "noise"}],
        embeddings=data.embedding[None],
        check_on=[data],
        provenance={"seed": seed},
    )
    return path


def serialiser(height: int, width: int, rounds: int = 300) -> dict[str, dict[str, float]]:
    """Measure the milliseconds to serialise and deserialise one image, for our serialiser and for the generic one."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.from_rgb(pixels, Time(1, 2), "camera_optical_frame")
    wire = image.serialize()
    plain = Image.from_rgb(pixels, Time(1, 2), "camera_optical_frame")
    plain.data = pixels.reshape(-1).tolist()

    def measure(work: Callable[[], object], times: int) -> dict[str, float]:
        taken: list[float] = []
        for _ in range(times):
            begin = time.perf_counter()
            work()
            taken.append(time.perf_counter() - begin)
        return percentiles(np.array(taken))

    return {
        "serialise_ms": measure(image.serialize, rounds),
        "deserialise_ms": measure(lambda: Image.deserialize(wire).to_rgb(), rounds),
        "generic_serialise_ms": measure(lambda: Image.__idl__.serialize(plain), 5),
        "generic_deserialise_ms": measure(lambda: Image.__idl__.deserialize(wire), 5),
    }


def main() -> None:
    """Measure, and write the result."""
    parser = make_parser(__doc__)
    parser.add_argument("--bundle", type=Path, help="bundle to serve (default: random weights with --config's sizes)")
    parser.add_argument("--second", type=Path, help="bundle to swap to (default: other random weights)")
    parser.add_argument("--config", type=Path, default=Path("config/tiny.toml"), help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=60.0, help="duration (default: %(default)s)")
    parser.add_argument("--height", type=int, default=480, help="of the images (default: %(default)s)")
    parser.add_argument("--width", type=int, default=640, help="of the images (default: %(default)s)")
    parser.add_argument("--swap", action="store_true", help="swap bundles after half of the time")
    parser.add_argument("--reliable-input", action="store_true", help="use reliable transport for images")
    add_out(parser)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, reserve_domain() as domain:
        folder = Path(name)
        watched = folder / "watched"
        watched.mkdir()
        bundle = args.bundle or random_bundle(folder, 0, args.config)
        second = args.second or (random_bundle(folder, 1, args.config) if args.swap else None)
        contract = open_bundle(bundle).contract

        def swap() -> None:
            if args.swap and second is not None:
                copy_beside = folder / "second"
                subprocess.run(["cp", "-r", str(second), str(copy_beside)], check=True, timeout=60)
                copy_beside.rename(watched / "second")

        more = ["--reliable-input"] if args.reliable_input else []
        with served(bundle, watched, domain, folder / "serve.log", more), Participant(domain) as participant:
            robot = Publisher(participant, contract, args.height, args.width)
            robot.connect()
            robot.run(2.0, contract.period)  # not counted: the policy has not started to move yet
            warm = set(robot.sent)
            robot.idle = robot.late = 0
            robot.run(args.seconds, contract.period, swap)
    measured = [stamp for stamp in robot.sent if stamp not in warm]
    answered = [stamp for stamp in measured if stamp in robot.answers]
    if not answered:
        raise TransportError(
            "no observation was answered; check that net.core.rmem_max is larger than an image, or give a smaller "
            "--height and --width"
        )
    latency: NDArray[np.float64] = np.array([robot.answers[s][0] - robot.sent[s] for s in answered])
    steps: NDArray[np.float64] = np.array([robot.steps.get(s, np.nan) for s in answered])
    by: dict[str, int] = {}
    for stamp in answered:
        by[robot.answers[stamp][1]] = by.get(robot.answers[stamp][1], 0) + 1
    write_measurement(
        "command_latency",
        {
            "bundle": open_bundle(args.bundle).identifier if args.bundle else f"random weights, {args.config}",
            "views": len(contract.cameras),
            "image": [args.height, args.width],
            "network_image": list(contract.cameras[0].shape[:2]),
            "rate_hz": contract.rate_hz,
            "seconds": args.seconds,
            "swap": args.swap,
            "reliable_input": args.reliable_input,
            "load_average": round(os.getloadavg()[0], 1),
            "nice": os.nice(0),
        },
        {
            "observations": len(measured),
            "unanswered": len(measured) - len(answered),
            "unanswered_after_s": [round((s - measured[0]) / 1e9, 2) for s in measured if s not in robot.answers][:50],
            "cycles_without_observation": robot.idle,
            "sent_late": robot.late,
            "answered_by": by,
            "latency_ms": percentiles(latency),
            "policy_step_ms": percentiles(steps[np.isfinite(steps)]),
            "latency_beyond_policy_step_ms": percentiles((latency - steps)[np.isfinite(steps)]),
            **serialiser(args.height, args.width),
        },
        args.out,
    )


if __name__ == "__main__":
    command(main)
