"""Command latency over DDS between two processes: ``python -m benchmarks.command_latency``.

``m2distill serve`` runs in a process of its own; this one publishes two cameras and the joints at the contract's rate,
as a robot does, and notes when the action that answers each observation arrives. Latency counts from the moment the
observation's last message was handed to DDS to the moment the action is in our hands, in this process's steady clock.
Pictures are noise. With ``--swap`` a second bundle appears in the watched folder half way: what that costs is seen in
``unanswered``. The image serialiser is measured beside it.
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
from m2distill_policy.dds.image import Image
from m2distill_policy.dds.m2distill_msgs import PolicyAction, PolicyStatus
from m2distill_policy.dds.participant import Participant, Reader, Waiter, Writer
from m2distill_policy.dds.types import Header, JointState, Time
from m2distill_policy.errors import TransportError
from m2distill_policy.node import topics
from m2distill_policy.node.messages import optical_frame

_MAIN = "import sys; from m2distill_policy.cli import main; sys.exit(main(sys.argv[1:]))"
_START = 60.0


class Publisher:
    """The robot's side: publishes observations, collects answers.

    sent: stamp (ns) -> steady time (s) of the last message. answers: stamp -> (steady time, bundle).
    steps: stamp -> s in the policy server. idle: statuses of cycles without an observation since the first answer.
    late: observations that this process itself sent over half a period late: the machine had no time for it.
    """

    def __init__(self, participant: Participant, contract: Contract, height: int, width: int) -> None:
        rng = np.random.default_rng(0)
        self._pictures = rng.integers(0, 256, (8, height, width, 3), dtype=np.uint8)
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

    def meet(self) -> None:
        """Wait until the policy is there."""
        endpoints: list[Reader[Any] | Writer[Any]] = [
            *self._views.values(),
            self._joints,
            self._actions,
            self._statuses,
        ]
        self._participant.wait_for_peers(endpoints, _START, "'m2distill serve' was started by this program")

    def run(self, seconds: float, period: float, half_way: Callable[[], None] = lambda: None) -> None:
        """Publish one observation a period for ``seconds``."""
        due = time.monotonic()
        count = round(seconds / period)
        for i in range(count):
            if i == count // 2:
                half_way()
            self._publish(i)
            now = time.monotonic()
            # A camera does not send in a burst what it could not send in time; nor does this.
            self.late += now - due > period / 2
            due = max(due, now - period / 2) + period
            while (left := due - time.monotonic()) > 0:
                self._waiter.wait(left)
                self._collect()

    def _publish(self, i: int) -> None:
        stamp = time.time_ns()
        at = Time.from_nanoseconds(stamp)
        for name, writer in self._views.items():
            writer.write(Image.from_rgb(self._pictures[i % len(self._pictures)], at, optical_frame(name)))
        # Joints move a little, so that pictures that repeat after a while are not taken for a frozen camera.
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
    """``m2distill serve`` in a process of its own, ended by SIGTERM."""
    instruction = open_bundle(bundle).instructions[0]
    arguments = ["serve", bundle, "--instruction", instruction, "--watch", watched, "--swap-when", "now"]
    with child([sys.executable, "-c", _MAIN, *arguments, "--domain", domain, *more], log):
        yield


def random_bundle(folder: Path, seed: int, config: Path) -> Path:
    """A bundle of a network with random weights, of the sizes in ``config``; needs torch."""
    import torch

    from benchmarks.training_speed import noise
    from m2distill_policy.config import load_config
    from m2distill_policy.contract import Text, libero_contract
    from training.export import export_bundle
    from training.models.resnet_t import ResNetT
    from training.run_config import RunConfig

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
    """Milliseconds to write and to read one picture: ours, and the generic serialiser for a few rounds."""
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.from_rgb(picture, Time(1, 2), "camera_optical_frame")
    wire = image.serialize()
    plain = Image.from_rgb(picture, Time(1, 2), "camera_optical_frame")
    plain.data = picture.reshape(-1).tolist()

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
    """Measure and write."""
    parser = make_parser(__doc__)
    parser.add_argument("--bundle", type=Path, help="serve this one (default: random weights of --config's sizes)")
    parser.add_argument("--second", type=Path, help="swap to a copy of this one (default: other random weights)")
    parser.add_argument("--config", type=Path, default=Path("config/tiny.toml"))
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--swap", action="store_true", help="swap bundles half way")
    parser.add_argument("--reliable-input", action="store_true", help="the policy asks for lost pictures again")
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
            robot.meet()
            robot.run(2.0, contract.period)  # the first pictures find the policy warm, but not yet driving
            warm = set(robot.sent)
            robot.idle = robot.late = 0
            robot.run(args.seconds, contract.period, swap)
    measured = [stamp for stamp in robot.sent if stamp not in warm]
    answered = [stamp for stamp in measured if stamp in robot.answers]
    if not answered:
        raise TransportError(
            "no observation was answered; see whether net.core.rmem_max lets pictures of this size pass"
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
            "picture": [args.height, args.width],
            "network_picture": list(contract.cameras[0].shape[:2]),
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
