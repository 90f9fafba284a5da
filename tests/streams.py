"""A policy's cycle and the streams of a robot, on clocks that are handed in, each with its own clock and rate."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.bundle import Bundle
from m2distill_policy.contract import Contract
from m2distill_policy.node.loop_options import LoopOptions
from m2distill_policy.node.output import Output
from m2distill_policy.node.pose_source import PoseSource
from m2distill_policy.node.real_time import RealTimeLoop
from m2distill_policy.runtime.server import PolicyServer
from m2distill_policy.runtime.watchdog import WatchLimits
from tests.bundles import INSTRUCTIONS, observations

NS = 1_000_000_000
BEGIN = 1_700_000_000


@dataclass(frozen=True)
class Clock:
    """A stream. hz: messages a second. offset: s that its stamps are ahead of their true time. delay: s until they
    arrive. phase: s, true time of the first message. fixed: ns, every message's stamp. until, since: s, when it sends.
    """

    hz: float = 20.0
    offset: float = 0.0
    delay: float = 0.005
    phase: float = 0.0
    fixed: int | None = None
    since: float = 0.0
    until: float = float("inf")

    def messages(self, seconds: float) -> Iterator[tuple[float, int, int]]:
        """(arrival in s, index, stamp in ns) of every message within ``seconds``."""
        index = 0
        while (at := self.phase + index / self.hz) < seconds:
            if self.since <= at < self.until:
                stamp = self.fixed if self.fixed is not None else round((BEGIN + at + self.offset) * NS)
                yield at + self.delay, index, stamp
            index += 1


@dataclass
class Streams:
    """joints: (topic, names or indices, clock) of each publisher. frozen, frozen_pose: s from which the arm's readings,
    or the pose, stay. values: of each publisher's joints at a time in s; None for one that stays about where it is.
    """

    contract: Contract
    views: dict[str, Clock] = field(default_factory=dict)
    joints: list[tuple[str, Sequence[str], Clock]] = field(default_factory=list)
    pose: Clock | None = None
    frozen: float = float("inf")
    frozen_pose: float = float("inf")
    values: Sequence[Callable[[float, Sequence[str]], list[float]] | None] = ()

    def __post_init__(self) -> None:
        for name in self.contract.camera_names:
            self.views.setdefault(name, Clock())
        if not self.joints:
            self.joints.append(("/joint_states", self.names, Clock(hz=125.0, delay=0.001)))

    @property
    def names(self) -> list[str]:
        return [entry for group in self.contract.proprioception for entry in group.entries]

    def shifted(self, stream: str, **change: float | int | None) -> Streams:
        """A copy in which the clock of a view, ``joints``, ``gripper`` or ``pose`` is another."""
        views, joints, pose = dict(self.views), list(self.joints), self.pose
        if stream in views:
            views[stream] = replace(views[stream], **change)  # type: ignore[arg-type]
        elif stream == "pose":
            pose = replace(pose or Clock(hz=125.0), **change)  # type: ignore[arg-type]
        else:
            index = 0 if stream == "joints" else 1
            topic, names, clock = joints[index]
            joints[index] = topic, names, replace(clock, **change)  # type: ignore[arg-type]
        return replace(self, views=views, joints=joints, pose=pose)


def play(
    bundle: Bundle,
    streams: Streams,
    seconds: float = 3.0,
    *,
    watch: WatchLimits | None = None,
    poses: PoseSource | None = None,
    **options: object,
) -> list[Output]:
    """What a cycle says in ``seconds`` of these streams, in real time on clocks of its own."""
    contract = streams.contract
    seen = observations(contract, 32)
    now = 0.0
    server = PolicyServer(bundle, sampling="mode", watch=watch, **options)  # type: ignore[arg-type]
    server.set_instruction(INSTRUCTIONS[0])
    cycle: RealTimeLoop[NDArray[np.uint8]] = RealTimeLoop(
        server,
        lambda frame: frame,
        LoopOptions(joint_topics=tuple(topic for topic, _, _ in streams.joints[1:])),
        wall_clock=lambda: round((BEGIN + now) * NS),
        monotonic=lambda: now,
        poses=poses,
    )
    #: (arrival in s, order, hand it in, whether it is a view)
    queue: list[tuple[float, int, Callable[[], None], bool]] = []
    order = itertools.count()

    def later(at: float, hand_in: Callable[[], None], view: bool = False) -> None:
        heapq.heappush(queue, (at, next(order), hand_in, view))

    for name, clock in streams.views.items():
        for at, index, stamp in clock.messages(seconds):
            later(at, partial(cycle.add_image, name, stamp, seen[index % 32].images[name]), view=True)
    rng = np.random.default_rng(0)
    told = itertools.chain(streams.values, itertools.repeat(None))
    for (topic, names, clock), values in zip(streams.joints, told, strict=False):
        for at, _, stamp in clock.messages(seconds):
            frozen = at >= streams.frozen
            row = [0.01 if "finger" in n else 0.1 if frozen else 0.1 + 1e-5 * float(rng.normal()) for n in names]
            row = row if values is None else values(at, names)
            later(at, partial(cycle.add_joints, stamp, names, row, topic))
    if streams.pose is not None:
        for at, _, stamp in streams.pose.messages(seconds):
            where = np.array([0.4, 0.0, 0.3, 3.0, 0.0, 0.0])
            if at < streams.frozen_pose:
                where[:3] += 1e-5 * rng.normal(size=3)
            later(at, partial(cycle.add_pose, stamp, where))
    outputs = []

    def turn() -> None:
        output = cycle.run(0.0)
        if output is not None:
            outputs.append(output)

    while queue:
        at, _, hand_in, view = heapq.heappop(queue)
        while cycle.wake < at:
            now = max(now, cycle.wake)
            turn()
        now = at
        hand_in()
        if view or cycle.lacks_joints:
            turn()
    while cycle.wake < seconds:
        now = max(now, cycle.wake)
        turn()
    return outputs
