"""One policy node's cycle, without its messages: what arrived goes in, what to publish comes out.

Real time (:meth:`PolicyCycle.run`): cycles at the contract's rate, see :mod:`m2distill_policy.node.pacer`. Each takes
the newest set of pictures and joints, once, and answers it; a cycle without a set is told to the policy server, which
ramps to a halt when that lasts.

Lockstep (:meth:`PolicyCycle.run_lockstep`): no clock. Every set whose stamps are equal is answered with exactly one
:class:`Output`, and with that one again where it is sent again. A new episode is begun with the seed of its random
numbers and its instruction, and answered with one :class:`Output` that bears its stamp, before any observation is
sent: topics are not ordered among each other, so only an answer can say that the policy has heard of it.

To be used from one thread. A hot swap prepares in the server's own thread and a folder is watched in the watcher's.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.errors import ObservationError, UnknownInstructionError
from m2distill_policy.node import topics
from m2distill_policy.node.arrivals import Arrival, Moment, Stream, check_arrivals, stale_set
from m2distill_policy.node.command import CommandMaker
from m2distill_policy.node.diagnostics import Diagnostics, Health
from m2distill_policy.node.gripper import GripperProfile
from m2distill_policy.node.incomplete import Labels
from m2distill_policy.node.joint_gate import JointConflictError
from m2distill_policy.node.joints import JointSource
from m2distill_policy.node.other_publishers import OtherPublishers
from m2distill_policy.node.pose_gate import PoseGate
from m2distill_policy.node.pose_source import POSE_PERIODS, PoseBuffer, PoseSource
from m2distill_policy.node.pose_wait import PoseWait
from m2distill_policy.node.stream import SLOWEST_CAMERA, ObservationStream
from m2distill_policy.node.synchroniser import RATE_OVER, SynchronisedSet
from m2distill_policy.options import LARGEST_SLOP, LONGEST_WAIT, SHORTEST_SLOP, SHORTEST_WAIT
from m2distill_policy.ranges import require_within
from m2distill_policy.runtime.engine import EngineError
from m2distill_policy.runtime.hotswap import SwapError
from m2distill_policy.runtime.preprocess import field_of_view_trouble
from m2distill_policy.runtime.safety import Motion
from m2distill_policy.runtime.server import Decision, PolicyServer
from m2distill_policy.runtime.status import StatusCode
from m2distill_policy.runtime.watchdog import Fault
from m2distill_policy.runtime.watcher import FolderWatcher

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: s between two /diagnostics.
DIAGNOSTICS_EVERY = 1.0
#: s that a ramp to a halt may take before the node leaves all the same; the longest that the limits allow takes 5.
LONGEST_RAMP = 6.0
#: s from the first signal for which a second one does not cut the ramp: the ramp, and what closing takes.
UNINTERRUPTED = LONGEST_RAMP + 2.0


@dataclass(frozen=True)
class CycleOptions:
    """slop: s by which the pictures and joints of one set may differ in real time. timeout: s without a sign of life
    before a lockstep gives up. gripper: positions and hysteresis. joints: where the arm's joints have other names,
    signs or zeros than the contract's readings. allow_other_publishers: drive although somebody else sends commands on
    the same topics, as in front of a multiplexer. joint_topics: topics of joint states beside ``/joint_states``."""

    slop: float = 0.02
    timeout: float = 60.0
    gripper: GripperProfile = field(default_factory=GripperProfile)
    joints: tuple[JointSource, ...] = ()
    allow_other_publishers: bool = False
    joint_topics: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_within("slop", self.slop, SHORTEST_SLOP, LARGEST_SLOP, "s")
        require_within("timeout", self.timeout, SHORTEST_WAIT, LONGEST_WAIT, "s")


@dataclass(frozen=True)
class Output:
    """What one cycle has to say; a status is always part of it.

    stamp: ns, of the observation answered, 0 without one; of the episode where one only begins. sent: ns, what
    commands are stamped with. action: whether ``~/action`` is published. twist: (6,) m/s and rad/s; target: (6,) m and
    rad, contract's frame; gripper: position in m; each None where it is not published. pose: (6,) m and rad, where the
    end effector was, None where that is not known. warnings: what does not stop the policy and still needs a look.
    health: for /diagnostics, None where it is not time yet. begin: s, when the work on this cycle began, by
    ``time.perf_counter``.
    """

    decision: Decision
    stamp: int
    sent: int
    action: bool
    command: bool
    twist: NDArray[np.float64] | None
    target: NDArray[np.float64] | None
    gripper: float | None
    pose: NDArray[np.float64] | None
    cycle: int
    episode: int
    gripper_commands: int
    warnings: tuple[str, ...]
    health: Health | None
    begin: float


class PolicyCycle(Generic[T]):
    """Connects a :class:`PolicyServer` to streams of messages that somebody else carries.

    Args:
        server: answers observations.
        picture: from a frame as it was handed in to (H, W, 3) uint8 RGB; may raise :class:`ObservationError`.
        lockstep: which of the two ways of running will be used.
        watcher: watches a folder for new bundles and is already wired to ``server.load``; None watches nothing. In
            lockstep it is asked between two observations and the swap waited for, so that a run can be repeated.
        full_name: from a topic as :mod:`m2distill_policy.node.topics` names it to its name here, after remapping; for
            sentences. Everything else here is told topics as that module names them.
        name: of this node with its namespace, in /diagnostics.
        wall: the clock of the observations' stamps, ns. steady: a monotonic clock, s.
        poses: where the end effector is, where something else knows that; None takes what :meth:`add_pose` is told.
        frame: the frame that those poses must be in; empty where it must only stay the same.
    """

    def __init__(
        self,
        server: PolicyServer,
        picture: Callable[[T], NDArray[np.uint8]],
        options: CycleOptions | None = None,
        *,
        lockstep: bool = False,
        watcher: FolderWatcher | None = None,
        full_name: Callable[[str], str] = topics.resolve,
        name: str = topics.POLICY_NODE,
        wall: Callable[[], int] = time.time_ns,
        steady: Callable[[], float] = time.monotonic,
        poses: PoseSource | None = None,
        frame: str = "",
    ) -> None:
        self.options = options or CycleOptions()
        #: In lockstep, whether this robot publishes its pose: then a set is answered only with the pose of its stamp.
        self.pose_expected = False
        self._server = server
        self._contract = server.contract
        self._lockstep = lockstep
        self._watcher = watcher
        self._full_name = full_name
        self._wall, self._steady = wall, steady
        self._cycle = 0
        self._episode = 0
        self._episode_stamp = -1
        self._commands = CommandMaker(server, self.options.gripper)
        self._gripper_commands = 0
        self._troubles: dict[str, str] = {}
        self._reported: set[str] = set()
        self._slop = 0 if lockstep else round(self.options.slop * 1e9)
        self._heard_poses = PoseBuffer(
            lambda: f"'{full_name(topics.END_EFFECTOR_POSE)}'",
            slop=self._slop,
            longest_silence=None if lockstep else POSE_PERIODS * self._contract.period,
            gate=PoseGate(server.speeds, jumps=not lockstep, frame=frame),
            steady=steady,
        )
        self._poses: PoseSource = self._heard_poses if poses is None else poses
        #: Whether the pose has jumped since the policy drove last: the ramp must not follow it.
        self._jumped = False
        self._pose_wait: PoseWait[T] = PoseWait(self._poses, self._contract.period)
        self._stream: ObservationStream[T] = ObservationStream(
            self._contract,
            picture,
            slop=self._slop,
            joints=self.options.joints,
            now=steady(),
            limits=server.watch,
            full_name=full_name,
        )
        self._labels = Labels(full_name)
        self._pose_arrival = Arrival()
        #: When the clocks were last read, see :meth:`_moment`.
        self._read = Moment(0, float("-inf"))
        #: In lockstep, the set that waits for the pose of its stamp, and the newest answer.
        self._pending: SynchronisedSet[T] | None = None
        self._answered: Output | None = None
        self._leave_at: float | None = None
        self._others = OtherPublishers()
        server.other_publisher(None)
        #: The newest ~/enable that came as a message.
        self._enable_heard = False
        #: Whether the newest command was still one that moves the arm, or ends the ramp of one.
        self._moved = False
        self._diagnostics = Diagnostics(steady(), name.strip("/"))
        self._diagnosed = steady()
        #: The state that was last told to whoever looks at the process and not at ``~/status``.
        self._said: StatusCode | None = None

    @property
    def cycles(self) -> int:
        """Cycles so far, each with its status."""
        return self._cycle

    # --- what arrives ------------------------------------------------------------------------------------------------

    def instruct(self, instruction: str) -> None:
        """Tell the policy what to do; a refusal is in the status every cycle. Ignored once the node is leaving."""
        if self._leave_at is not None:  # an instruction would undo the halt
            return
        try:
            self._server.set_instruction(instruction)
        except (UnknownInstructionError, EngineError) as error:
            logger.warning("%s", error)

    def enable(self, wanted: bool) -> tuple[bool, str]:
        """Let commands out, or ramp to a halt and go on in shadow.

        A camera that was too slow is measured anew. Nothing changes where it would be in vain: the node is leaving, or
        it would have to be asked for again once what holds the arm is gone.

        Returns:
            Whether it was done, and a sentence: what still keeps commands from going out, or why it was refused.
        """
        if self._leave_at is not None:
            return False, "the node is leaving, and halts"
        if not wanted:
            self._server.disable()
            return True, "ramping to a halt; the policy answers in shadow"
        self._others.forgive(self._steady())
        self._judge_others()
        refusal = self._server.refusal_to_enable(self._steady())
        if refusal:
            return False, f"not enabled: {refusal}"
        for name in self._slow_cameras():
            self._stream.measure_anew(name)
            self._server.not_yet(self._unmeasured())
        self._server.enable()
        obstacles = " ".join(dict.fromkeys(fault.sentence for fault in self._server.obstacles(self._steady())))
        return True, f"enabled, but no command goes out yet: {obstacles}" if obstacles else "commands go out"

    def enable_requested(self, wanted: bool) -> None:
        """``~/enable`` came as a message, which nobody answers: a refusal is logged, and the status says the same.

        True counts once, until false is heard: a publisher that repeats itself, however slowly, must not set an arm
        going that was halted in between.
        """
        repeated, self._enable_heard = wanted and self._enable_heard, wanted
        if repeated:
            codes = {fault.code for fault in self._server.obstacles(self._steady())}
            in_vain = self._server.held is not None or codes & {StatusCode.DISABLED, StatusCode.HALT_REQUESTED}
            sentence = f"True is repeated on {self._full_name(topics.ENABLE)}; to enable, send false, then true."
            self.trouble("enable", sentence if in_vain else None)
            return
        self.trouble("enable", None)
        done, sentence = self.enable(wanted)
        if not done:
            logger.warning("%s: %s", self._full_name(topics.ENABLE), sentence)

    def emergency_stop(self, pressed: bool, *, publishers: int = 1) -> None:
        """The emergency stop is pressed or let go. publishers: of its topic; with several, a press stays."""
        if not self._is_shared(topics.EMERGENCY_STOP, publishers) or pressed:
            self._server.emergency_stop(pressed)

    def dead_man(self, held: bool, *, publishers: int = 1) -> None:
        """The dead-man switch says whether it is held. publishers: of its topic; with several, it counts as let go."""
        shared = self._is_shared(topics.DEAD_MAN, publishers)
        self._server.dead_man(held and not shared, steady=self._steady())

    def _is_shared(self, topic: str, publishers: int) -> bool:
        """Whether a switch has several publishers: a message does not say whose it is, and one of them would let go
        what another one has pressed."""
        shared = publishers > 1
        self.trouble(
            f"publishers of {topic}",
            f"{publishers} programs publish {self._full_name(topic)}, and a message does not say which one sent it. So "
            "an emergency stop stays pressed, and a dead-man switch counts as let go. Use one publisher."
            if shared
            else None,
        )
        return shared

    def add_view(self, name: str, stamp: int, frame: T) -> None:
        """A frame of the view ``name``, stamped ``stamp`` ns."""
        self._stream.add_view(name, stamp, frame, self._moment())
        self._halt_where_a_camera_is_slow()

    def add_joints(
        self, stamp: int, names: Sequence[str], positions: Sequence[float], topic: str = topics.JOINT_STATES
    ) -> None:
        """Take in a joint state from ``topic``; one that contradicts itself or others is left out, and the status says
        so."""
        try:
            self._stream.add_joints(stamp, names, positions, self._moment(), topic)
        except JointConflictError:
            pass  # the stream's fault, see _stream_fault
        except ObservationError as error:
            self.trouble(topic, str(error))

    def add_pose(self, stamp: int, pose: NDArray[np.float64], frame: str = "") -> None:
        """Take in the end effector's pose (6,) in the contract's frame; ``frame`` is what its message calls that."""
        moment = self._moment()
        if moment is not None:
            self._pose_arrival.note(stamp, moment, self._server.watch.future_tolerance)
        self._heard_poses.add(stamp, pose, frame)

    def refuse_pose(self, why: str) -> None:
        """A message on ``/end_effector_pose`` that holds no pose."""
        self._heard_poses.refuse(why)

    def add_camera_info(self, name: str, focal: float, height: int, width: int) -> None:
        """Intrinsics of the view ``name``: vertical focal length and size in pixels; a wrong lens is a warning."""
        trouble = field_of_view_trouble(self._contract.camera(name), focal, height, width)
        self.trouble(topics.camera_info_topic(name), trouble)

    def arrived(self, topic: str, count: int, broken: Sequence[str] = ()) -> None:
        """``count`` good messages came on ``topic``, and broken ones, a sentence each; call it before handing them
        in."""
        self._diagnostics.arrived(self._full_name(topic), count)
        if broken:
            self._diagnostics.broken += len(broken)
            self.trouble(topic, broken[-1])
        elif count:
            self.trouble(topic, None)

    def trouble(self, what: str, sentence: str | None, *, alike: str | None = None) -> None:
        """Keep what is wrong with ``what`` for the status until it is right again; each sentence is logged once.

        alike: what sentences have in common that differ in a measured number: of those the first is logged.
        """
        if sentence is None:
            self._troubles.pop(what, None)
            return
        self._troubles[what] = sentence
        if (alike or sentence) not in self._reported and len(self._reported) < 100:
            self._reported.add(alike or sentence)
            logger.warning("%s", sentence)

    def other_publishers(self, topic: str, names: Sequence[str]) -> None:
        """``names`` publish the commands ``topic`` beside this node; call it once a second, also with none."""
        self._others.there(self._full_name(topic), names)
        self._judge_others()

    def other_command(self, topic: str) -> None:
        """Somebody else has sent a command on ``topic``."""
        self._others.heard(self._full_name(topic), self._steady())
        self._judge_others()

    def _judge_others(self) -> None:
        if self.options.allow_other_publishers:
            return
        if not self._server.enabled:  # whoever drives meanwhile is none of our business once it has stopped
            self._others.forgive(self._steady())
        self._server.other_publisher(self._others.fault)
        self.trouble("other publishers", self._others.warning if self._server.enabled else None)

    def gripper_missed(self) -> None:
        """The gripper did not take its command: the next clear wish is told again."""
        self._commands.forget_gripper()

    @property
    def troubles(self) -> tuple[str, ...]:
        """What is wrong now, a sentence each."""
        return tuple(self._troubles.values())

    # --- real time ---------------------------------------------------------------------------------------------------

    def run(self, begin: float) -> Output | None:
        """The cycle that is due, or None where it is not time for one yet; call it when something arrived or at
        :attr:`wake`. begin: when the work on what arrived began (``time.perf_counter``)."""
        now = self._steady()
        if self._pose_wait.waiting:
            waited = self._pose_wait.take(now)
            return self._answer(*waited) if waited is not None else None
        found = self._stream.due(now)
        if found is not None:
            return None if self._pose_wait.begin(found, begin, now) else self._answer(found, begin)
        return self._without_observation(begin) if self._stream.missed(now) else None

    def _moment(self) -> Moment | None:
        """Read both clocks. ROS is not asked for the time at each of a thousand joint states a second."""
        if self._lockstep:
            return None
        steady = self._steady()
        passed = steady - self._read.steady
        if not 0 <= passed < 0.001:
            self._read = Moment(self._wall(), steady)
            return self._read
        return Moment(self._read.wall + round(passed * 1e9), steady)

    def _stream_fault(self, stamp: int | None = None) -> Fault | None:
        """What is wrong with the clock or the rate of a stream, or with what the joint states say, whatever sets they
        give; and with the age of the set stamped ``stamp`` (ns)."""
        if self._lockstep:
            return None
        streams = self._stream.streams()
        moment = self._moment()
        if self._poses is self._heard_poses:
            streams.append(Stream(self._labels.pose, self._pose_arrival, optional=True))
        elif moment is not None and self._poses.newest_stamp > moment.wall:
            # Of transforms it is not known when they came; one that is ahead now was ahead then.
            self._pose_arrival.note(self._poses.newest_stamp, moment, self._server.watch.future_tolerance)
            streams.append(Stream(self._poses.place, self._pose_arrival, optional=True))
        found = check_arrivals(streams, self._server.watch, self._steady())
        if found is None and stamp is not None:
            found = stale_set(streams, stamp, self._server.watch, self._wall())
        return found or self._stream.joint_conflict(self._steady()) or self._stream.slow_joints()

    @property
    def wake(self) -> float:
        """When :meth:`run` has something to do even if nothing arrives: s, monotonic."""
        return self._pose_wait.wake(self._steady()) if self._pose_wait.waiting else self._stream.wake

    @property
    def lacks_joints(self) -> bool:
        """Whether a joint state is all that the next set lacks. They may come a thousand times a second: not a reason
        to wake up otherwise."""
        return self._stream.waiting_for == ("joint_states",)

    def leave(self, reason: str) -> None:
        """Begin to ramp to a halt for good."""
        if self._leave_at is None:
            self._server.halt(reason)
            self._leave_at = self._steady() + LONGEST_RAMP

    @property
    def left(self) -> bool:
        """Whether the ramp that :meth:`leave` began is over, so that the node may go."""
        if self._leave_at is None:
            return False
        return self._server.motion is Motion.HALTED or self._steady() >= self._leave_at

    def ramp(self) -> Output:
        """The next cycle of the ramp after :meth:`leave`, without looking at observations; call it once a period."""
        self._pose_wait.clear()
        return self._without_observation(time.perf_counter())

    def _without_observation(self, begin: float) -> Output:
        self._say_jump()
        self._diagnostics.missed += self._server.motion is Motion.RUNNING
        decision = self._server.tick_without_observation(
            self._wall() / 1e9,
            steady=self._steady(),
            newest=self._poses.at(0),
            fault=self._stream_fault(),
            why=lambda: self._stream.why_no_set(self._steady()),
        )
        return self._output(decision, 0, begin)

    # --- lockstep ----------------------------------------------------------------------------------------------------

    def begin_episode(self, number: int, instruction: str, *, seed: int, draw: int, stamp: int) -> Output:
        """Forget the last episode; random numbers are stream ``draw`` of ``seed``; every observation is later than
        ``stamp`` (ns)."""
        begin = time.perf_counter()
        self._stream.clear()
        self._pending = self._answered = None
        self._poses.clear()
        self._commands.forget_gripper()
        self._gripper_commands = 0
        self._episode, self._episode_stamp = number, stamp
        self._swap_in_lockstep()
        if self._leave_at is None:
            self._server.release_halt()
        self.instruct(instruction)
        self._server.reset("a new episode", seed=seed, episode=draw, still=True)
        if self._server.swap_pending:
            # A bundle that waited for the arm to be idle takes over here, and not at some later cycle of this episode.
            self._wait_for_swap()
        return self._output(self._server.tick_without_observation(stamp / 1e9), stamp, begin, answers=False)

    def run_lockstep(self, begin: float) -> Output | None:
        """The answer to the next set, or None while there is none; one from before the present episode is dropped.

        A robot that has waited long sends its observation again: then the very answer is given again. A message can
        be lost even where all are asked for, when it is the first that two processes exchange on a topic.
        """
        pending = self._pending or self._stream.take()
        self._pending = None
        if pending is None or pending.stamp <= self._episode_stamp:
            return None
        if self.pose_expected and self._poses.at(pending.stamp) is None:
            # This robot publishes its pose, so it wants a set-point, and that needs the pose of this very stamp.
            self._pending = pending
            return None
        if self._answered is not None and self._answered.stamp == pending.stamp:
            return self._answered
        self._swap_in_lockstep()
        self._answered = self._answer(pending, begin)
        return self._answered

    @property
    def silent(self) -> tuple[str, ...]:
        """The topics without which the newest of what has arrived makes no set."""
        if self._pending is not None:
            return (self._full_name(topics.END_EFFECTOR_POSE),)
        wanted = self._stream.waiting_for
        names = [topics.JOINT_STATES if name == "joint_states" else topics.camera_topic(name) for name in wanted]
        return tuple(self._full_name(name) for name in names)

    def _swap_in_lockstep(self) -> None:
        if self._watcher is None:
            return
        try:
            found = self._watcher.poll()
        except (OSError, SwapError) as error:  # the policy that drives is not touched by this
            self.trouble("hot swap", f"A new bundle could not be taken: {error}.")
            return
        self.trouble("hot swap", None)
        if found is not None:
            self._wait_for_swap()

    def _wait_for_swap(self) -> None:
        try:
            self._server.wait_for_swap(self.options.timeout)
        except SwapError as error:
            self.trouble("hot swap", f"A new bundle could not be taken: {error}.")

    # --- what goes out -----------------------------------------------------------------------------------------------

    def published(self, output: Output) -> None:
        """Tell that ``output`` is out, for the latencies in /diagnostics."""
        if output.stamp and output.action:
            self._diagnostics.cycle(output.decision.status.latency, time.perf_counter() - output.begin)

    def _answer(self, found: SynchronisedSet[T], begin: float) -> Output:
        observation, troubles = self._stream.observe(found)
        self.trouble("observation", " ".join(troubles) or None)
        self._say_jump()
        pose = self._poses.at(found.stamp)
        no_pose = self._no_pose(found.stamp) if pose is None and self._server.limits.needs_pose else None
        if self._lockstep:
            decision = self._server.step(observation, observation.stamp, pose=pose, newest=pose, no_pose=no_pose)
        else:
            # Again, because what ends a halt does not make the camera faster.
            self._halt_where_a_camera_is_slow()
            self._server.not_yet(self._unmeasured())
            decision = self._server.step(
                observation,
                self._wall() / 1e9,
                steady=self._steady(),
                pose=pose,
                newest=self._poses.at(0),
                fault=self._stream_fault(found.stamp),
                no_pose=no_pose,
                pose_place=lambda: self._poses.place,
            )
        return self._output(decision, found.stamp, begin)

    def _unmeasured(self) -> str | None:
        """What is not known yet of the cameras' rates, as a sentence."""
        unknown = [name for name in self._contract.camera_names if name not in self._stream.intervals]
        if not unknown:
            return None
        return f"Waiting for {RATE_OVER + 1} pictures of {', '.join(unknown)}, to know whether they come fast enough."

    def _slow_cameras(self) -> dict[str, float]:
        """The views that come too slowly, with the seconds between two of their frames."""
        longest = SLOWEST_CAMERA * self._contract.period
        return {} if self._lockstep else {n: s for n, s in self._stream.intervals.items() if s > longest}

    def _no_pose(self, stamp: int) -> Fault:
        """Why there is no pose for ``stamp`` (ns), where the workspace needs one."""
        refused = self._poses.refused
        if refused is not None:
            return Fault(StatusCode.BAD_POSE, f"{refused} The workspace is limited, so the arm is not driven without.")
        return Fault(
            StatusCode.NO_POSE,
            f"The workspace is limited and no pose on {self._poses.place} belongs to this observation: "
            f"{self._poses.absence(stamp)}.",
        )

    def _say_jump(self) -> None:
        jump = self._poses.take_jump()
        if jump is not None:
            self._jumped = True
            self._server.pose_jumped(
                f"The pose on {self._poses.place} jumped ({jump}), and has stayed there: the arm was moved, or the "
                "measurement is wrong. See which, then enable the policy to go on from there."
            )

    def _halt_where_a_camera_is_slow(self) -> None:
        for name, interval in self._slow_cameras().items():
            self._server.halt(
                f"camera '{name}' sends {1 / interval:.1f} pictures a second and the policy needs "
                f"{self._contract.rate_hz:g}; choose a faster camera mode, then enable the policy (~/enable)"
            )

    def _output(self, decision: Decision, stamp: int, begin: float, *, answers: bool = True) -> Output:
        """``answers`` is False where an episode only begins."""
        pose = self._poses.at(stamp) if answers else None
        start, wanted, send = None, False, decision.command and answers
        self._jumped = self._jumped and decision.status.code is not StatusCode.RUNNING
        if send:
            # A set-point that is not the policy's answer to a picture is made of where the arm is now: the stamp may be
            # what is wrong with the picture.
            asked = stamp if self._lockstep or decision.sample is not None else 0
            start = pose if asked == stamp else self._poses.at(asked)
            # The controller holds the last one. Made anew while halted, from wherever the arm is, it would give way to
            # whatever weighs on the arm, a little every cycle.
            wanted = self._lockstep or self._moved or decision.status.motion != Motion.HALTED.value
            wanted = wanted and not self._jumped
            lacking = start is None and self._poses.expected
            self.trouble(
                "pose",
                f"No pose on {self._poses.place} belongs to this cycle ({self._poses.absence(asked)}), so "
                "~/target_pose is not published; send poses at the pictures' stamps or more often, see docs/ros2.md."
                if lacking
                else None,
                alike="no pose",
            )
        self.trouble("pose refused", self._poses.refused, alike="a pose refused")
        # Nothing goes out that was not made and checked here.
        decision, command = self._commands.make(decision, start, send=send, set_point=wanted)
        if send:
            self.trouble("workspace", command.trouble, alike="outside the workspace")
        self._gripper_commands += command.gripper is not None
        self._moved = decision.status.motion != Motion.HALTED.value
        self._cycle += 1
        warnings = list(self._troubles.values())
        if self._watcher is not None and self._watcher.trouble:
            warnings.append(self._watcher.trouble)
        return Output(
            decision=decision,
            stamp=stamp,
            # In lockstep there is no clock but the observations'.
            sent=stamp if self._lockstep else self._wall(),
            action=answers and (decision.command or bool(stamp)),
            command=send,
            twist=command.twist,
            target=command.target,
            gripper=command.gripper,
            pose=pose,
            cycle=self._cycle,
            episode=self._episode,
            gripper_commands=self._gripper_commands,
            warnings=tuple(warnings),
            health=self._health(decision, warnings),
            begin=begin,
        )

    def _health(self, decision: Decision, warnings: Sequence[str]) -> Health | None:
        now = self._steady()
        if now - self._diagnosed < DIAGNOSTICS_EVERY:
            return None
        self._diagnosed = now
        code = decision.status.code
        if code not in (self._said, StatusCode.WAITING):  # for the next observation, as between any two
            self._said = code
            logger.log(
                logging.WARNING if code.is_fault else logging.INFO, "%s: %s", code.name, decision.status.sentence
            )
        return self._diagnostics.health(
            decision.status,
            now,
            provider=self._server.engine.active_provider,
            warnings=warnings,
            seed=self._server.episode,
        )
