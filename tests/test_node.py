"""What both policy nodes share: gripper, topic names, poses, and the cycle without any transport."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from m2distill_policy.bundle import Bundle
from m2distill_policy.contract import Camera, libero_contract
from m2distill_policy.errors import ConfigError, ObservationError
from m2distill_policy.images.preprocess import check_field_of_view
from m2distill_policy.node import topics
from m2distill_policy.node.gripper import GripperProfile, GripperSwitch
from m2distill_policy.node.lockstep import LockstepLoop
from m2distill_policy.node.loop_options import LoopOptions
from m2distill_policy.node.output import Output
from m2distill_policy.node.pose import pose_from, quaternion_of
from m2distill_policy.node.real_time import RealTimeLoop
from m2distill_policy.node.synchroniser import RATE_OVER
from m2distill_policy.node.topics import camera_info_topic, camera_topic, parse_namespace, parse_remappings, resolve
from m2distill_policy.observation import Observation
from m2distill_policy.runtime import drive
from m2distill_policy.runtime.server import PolicyServer
from m2distill_policy.runtime.status import StatusCode
from m2distill_policy.runtime.watchdog import WatchLimits
from tests.bundles import INSTRUCTIONS, observations, toy_bundle, toy_contract

CONTRACT = toy_contract()
PERIOD = CONTRACT.period
STEPS = observations(CONTRACT, 60, start=100.0)
POSE = np.array([0.4, 0.0, 0.3, math.pi, 0.02, -0.01])
Picture = NDArray[np.uint8]


def test_gripper_commands_are_sent_only_on_change() -> None:
    switch = GripperSwitch(GripperProfile(threshold=0.2))
    told = [switch.update(v) for v in (0.1, -0.5, -0.9, 0.1, 0.2, 0.3, 1.0, -0.1, -0.3)]
    assert told == [None, 0.08, None, None, None, 0.0, None, None, 0.08]
    switch.reset()
    assert switch.update(-1.0) == 0.08
    profile = GripperProfile()
    assert [profile.entry(p) for p in (0.08, 0.05, 0.0, 0.03)] == [-1.0, -1.0, 1.0, 1.0]
    with pytest.raises(ConfigError, match="threshold is 1"):
        GripperProfile(threshold=1.0)
    with pytest.raises(ConfigError, match="they must differ"):
        GripperProfile(open_position=0.0)


def test_topic_names() -> None:
    assert camera_topic("agentview_rgb") == "/camera/agentview/image_raw"
    assert camera_info_topic("eye_in_hand_rgb") == "/camera/eye_in_hand/camera_info"
    assert resolve("~/action") == "/m2distill_policy/action"
    remap = parse_remappings(["/joint_states:=/arm/joint_states", "~/twist:=/servo_node/delta_twist_cmds"])
    assert resolve("/joint_states", remap) == "/arm/joint_states"
    assert resolve("~/twist", remap) == "/servo_node/delta_twist_cmds"
    with pytest.raises(ConfigError, match="FROM:=TO"):
        parse_remappings(["/a=/b"])
    with pytest.raises(ConfigError, match="not a full name"):
        resolve("joint_states")


def test_a_pose_survives_a_message() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        pose = np.concatenate([rng.uniform(-1, 1, 3), rng.uniform(-1, 1, 3) * rng.uniform(0, 1.7)])
        np.testing.assert_allclose(pose_from(pose[:3].tolist(), quaternion_of(pose[3:])), pose, atol=1e-9)
    assert not pose_from((0, 0, 0), (0, 0, 0, 1)).any()
    with pytest.raises(ObservationError, match="quaternion of length 0"):
        pose_from((0, 0, 0), (0, 0, 0, 0))
    with pytest.raises(ObservationError, match="not finite"):
        pose_from((math.nan, 0, 0), (0, 0, 0, 1))


def test_no_rotation_stays_exactly_none() -> None:
    contract = libero_contract(32)
    action = np.array([0.5, 0.0, -0.5, 0.0, 0.0, 0.0, 1.0])
    target = drive.set_point(POSE, action, contract)
    back = pose_from(target[:3].tolist(), quaternion_of(target[3:]))
    assert not drive.motion_to(back, POSE, contract)[3:].any()


def test_field_of_view_is_compared_after_the_crop() -> None:
    camera = Camera("agentview_rgb", 32, 32, 45.0)

    def focal(fov_y: float, height: int) -> float:
        return height / 2 / math.tan(math.radians(fov_y) / 2)

    assert check_field_of_view(camera, focal(45.0, 480), 480, 640) is None
    problem = check_field_of_view(camera, focal(60.0, 480), 480, 640)
    assert problem is not None and "60.0 degrees" in problem and "45.0" in problem
    # A portrait picture loses rows to a square crop, and with them field of view.
    assert check_field_of_view(camera, focal(45.0, 640), 640, 480) is not None
    assert check_field_of_view(camera, 0.0, 640, 480) is None, "not calibrated"


# --- the cycle -------------------------------------------------------------------------------------------------------


class Hand:
    """A cycle whose clocks and messages are handed in; ``now`` is both clocks, in s."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        watch: WatchLimits | None = None,
        known: bool = True,
        lockstep: bool = False,
        **options: Any,
    ) -> None:
        """known: the cameras have sent enough pictures to know that they come fast enough."""
        self.now = 100.0
        self.server = PolicyServer(bundle, sampling="mode", watch=watch)
        self.server.set_instruction(INSTRUCTIONS[0])
        kind: Any = LockstepLoop if lockstep else RealTimeLoop
        self.cycle: Any = kind(
            self.server, self.picture, wall_clock=lambda: round(self.now * 1e9), monotonic=lambda: self.now, **options
        )
        for before in range(RATE_OVER + 1, 0, -1) if known and not lockstep else ():
            for name in CONTRACT.camera_names:
                stamp = round((STEPS[0].stamp - before * PERIOD) * 1e9)
                self.cycle.add_image(name, stamp, STEPS[0].images[name])

    @staticmethod
    def picture(frame: Picture) -> Picture:
        if frame.size == 0:
            raise ObservationError("the image is empty")
        return frame

    def send(self, observation: Observation, *, without: str = "", joints: int | None = None) -> None:
        stamp = round(observation.stamp * 1e9)
        for name, frame in observation.images.items():
            if name != without:
                self.cycle.add_image(name, stamp, frame)
        names = [e for g in CONTRACT.proprioception for e in g.entries]
        values = np.concatenate([observation.proprioception[g.name] for g in CONTRACT.proprioception]).tolist()
        if without != "joint_states":
            self.cycle.add_joints(stamp, names[:joints], values[:joints])

    def drive(self, steps: list[Observation], change: Callable[[int], None] = lambda i: None) -> list[Output]:
        """Observations as they come, 10 ms after their stamps, and what the cycle says to each."""
        outputs = []
        for i, observation in enumerate(steps):
            self.now = observation.stamp + 0.01
            change(i)
            self.send(observation)
            output = self.cycle.run(0.0)
            assert output is not None
            self.cycle.note_published(output)
            outputs.append(output)
        return outputs


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return toy_bundle(tmp_path_factory.mktemp("node") / "bundle")


def test_a_cycle_answers_every_set_once(bundle: Bundle) -> None:
    hand = Hand(bundle)
    outputs = hand.drive(STEPS[:30])
    reference = PolicyServer(bundle, sampling="mode")
    reference.set_instruction(INSTRUCTIONS[0])
    for output, observation in zip(outputs, STEPS, strict=False):
        expected = reference.step(observation, observation.stamp + 0.01)
        assert output.stamp == round(observation.stamp * 1e9) and output.command_stamp == output.stamp + 10_000_000
        assert output.publishes_action and output.command.is_sent
        np.testing.assert_array_equal(output.decision.action, expected.action)
        assert output.command.twist is not None
        np.testing.assert_array_equal(output.command.twist, drive.twist(expected.action, CONTRACT))
        assert output.command.target_pose is None, "no pose was sent"
    assert [o.report.cycle for o in outputs] == list(range(1, 31))
    assert hand.cycle.run(0.0) is None, "a set is used once"
    told = [o.report.health for o in outputs if o.report.health is not None]
    assert len(told) == 1 and told[0].level == 0 and dict(told[0].values)["status"] == "RUNNING"


def test_a_cycle_waits_and_then_halts_without_observations(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    hand = Hand(bundle)
    last = hand.drive(STEPS[:25])[-1]
    said = []
    while hand.now < STEPS[24].stamp + 1.0:
        hand.now = max(hand.cycle.wake, hand.now)
        output = hand.cycle.run(0.0)
        assert output is not None, "a cycle is due at wake"
        said.append(output)
    assert said[0].decision.status.code is StatusCode.WAITING and not said[0].command.is_sent
    missing = [o for o in said if o.decision.status.code is StatusCode.MISSING_OBSERVATION]
    assert missing and missing[-1].decision.status.motion == "halted" and not missing[-1].decision.action[:6].any()
    assert all(np.abs(o.decision.action[:6]).max() <= np.abs(last.decision.action[:6]).max() for o in missing)
    assert all(not o.stamp for o in said)
    levels = [(r.levelname, r.getMessage().partition(":")[0]) for r in caplog.records]
    assert levels == [("INFO", "RUNNING"), ("WARNING", "MISSING_OBSERVATION")], "told once each, not every cycle"


def test_a_set_point_needs_a_pose_that_belongs_to_the_cycle(bundle: Bundle) -> None:
    hand = Hand(bundle)
    pose = POSE.copy()

    def with_pose(i: int) -> None:
        if i < 5:
            hand.cycle.add_pose(round(STEPS[i].stamp * 1e9), pose)

    outputs = hand.drive(STEPS[:12], with_pose)
    for output in outputs[:5]:
        assert output.command.target_pose is not None
        np.testing.assert_array_equal(
            output.command.target_pose, drive.set_point(pose, output.decision.action, CONTRACT)
        )
    assert all(o.command.target_pose is None and o.command.twist is not None for o in outputs[5:])
    assert "No pose on '/end_effector_pose' belongs to this cycle" in " ".join(outputs[-1].report.warnings)


def test_set_points_of_a_halt_are_made_of_where_the_arm_is_and_end_with_the_ramp(bundle: Bundle) -> None:
    hand = Hand(bundle)

    def where(now: float) -> NDArray[np.float64]:
        return POSE + 0.2 * (now - 100.0) * np.eye(6)[0]

    def with_poses(i: int) -> None:
        # Poses come up to now; a picture from 0.5 s ago could find the one of its own stamp.
        for now in np.arange(hand.now - 0.02, hand.now + 1e-6, 0.01):
            hand.cycle.add_pose(round(now * 1e9), where(now))

    hand.drive(STEPS[:20], with_poses)
    old = [dataclasses.replace(o, stamp=o.stamp - 0.5 + 0.01 * i) for i, o in enumerate(STEPS[20:40])]
    stale = []
    for i, observation in enumerate(old):
        hand.now = STEPS[20 + i].stamp + 0.01
        with_poses(i)
        hand.send(observation)
        output = hand.cycle.run(0.0)
        assert output is not None and output.decision.status.code in (
            StatusCode.OUT_OF_ORDER,
            StatusCode.STALE_OBSERVATION,
        )
        stale.append((where(hand.now), output))
    ramp, held = stale[:5], stale[5:]
    for here, output in ramp:
        assert output.command.target_pose is not None
        np.testing.assert_allclose(
            output.command.target_pose, drive.set_point(here, output.decision.action, CONTRACT), atol=1e-9
        )
    assert ramp[-1][1].command.target_pose is not None
    np.testing.assert_allclose(ramp[-1][1].command.target_pose[:3], ramp[-1][0][:3], atol=1e-9)
    # The controller holds the last set-point; zeros still go to one that takes velocities.
    assert all(
        output.command.target_pose is None and output.command.twist is not None and not output.command.twist.any()
        for _, output in held
    )


def test_what_cannot_be_used_is_named_and_halts(bundle: Bundle) -> None:
    hand = Hand(bundle)
    hand.drive(STEPS[:3])
    hand.now = STEPS[3].stamp + 0.01
    empty = {**STEPS[3].images, "eye_in_hand_rgb": np.zeros((0, 0, 3), dtype=np.uint8)}
    hand.send(dataclasses.replace(STEPS[3], images=empty))
    output = hand.cycle.run(0.0)
    assert output is not None and output.decision.status.code is StatusCode.BAD_OBSERVATION
    assert "view 'eye_in_hand_rgb': the image is empty" in output.report.warnings
    hand.now = STEPS[4].stamp + 0.01
    hand.send(STEPS[4], joints=6)
    assert hand.cycle.run(0.0) is None, "the joints may be in the next message"
    statuses = []
    for step in STEPS[5:10]:
        hand.now = step.stamp + 0.01
        hand.send(step, joints=6)
        hand.now = max(hand.now, hand.cycle.wake)
        output = hand.cycle.run(0.0)
        assert output is not None
        statuses.append(output.decision.status)
    assert [s.code for s in statuses[-2:]] == [StatusCode.BAD_OBSERVATION] * 2
    assert f"does not name {CONTRACT.proprioception[0].entries[-1]}" in statuses[-1].message
    hand.now = STEPS[11].stamp + 0.01
    hand.send(STEPS[11])
    output = hand.cycle.run(0.0)
    assert output is not None and output.command.is_sent and output.report.warnings == ()


def test_leaving_ramps_to_a_halt_and_no_instruction_undoes_it(bundle: Bundle) -> None:
    hand = Hand(bundle)
    hand.drive(STEPS[:5])
    hand.cycle.shut_down("the arm is needed elsewhere")
    hand.cycle.operator.set_instruction(INSTRUCTIONS[1])
    outputs = []
    while not hand.cycle.may_exit:
        outputs.append(hand.cycle.ramp())
        hand.now += PERIOD
    assert len(outputs) == 5 and outputs[-1].decision.status.motion == "halted"
    assert "the arm is needed elsewhere" in outputs[0].decision.status.message
    assert hand.server.instruction == INSTRUCTIONS[0]


def test_a_slow_camera_halts_also_after_an_instruction(bundle: Bundle) -> None:
    hand = Hand(bundle, watch=WatchLimits(silent_after=None))
    slow = [dataclasses.replace(o, stamp=100 + i * 0.08) for i, o in enumerate(STEPS)]

    def again(i: int) -> None:
        if i == 30:
            hand.cycle.operator.set_instruction(INSTRUCTIONS[1])

    outputs = hand.drive(slow[:40], again)
    assert [o.decision.status.code for o in outputs[25:]] == [StatusCode.HALT_REQUESTED] * 15
    assert "sends 12.5 images a second" in outputs[35].decision.status.message
    # Told while a picture waits for its cycle.
    hand.now = slow[40].stamp + 0.01
    hand.send(slow[40])
    hand.cycle.operator.set_instruction(INSTRUCTIONS[0])
    output = hand.cycle.run(0.0)
    assert output is not None and output.decision.status.code is StatusCode.HALT_REQUESTED


def test_the_arm_is_not_driven_before_the_cameras_are_known_to_be_fast_enough(bundle: Bundle) -> None:
    slow = [dataclasses.replace(o, stamp=100 + i * 0.08) for i, o in enumerate(STEPS)]
    outputs = Hand(bundle, known=False).drive(slow[:30])
    assert not any(o.command.is_sent for o in outputs), "a slow camera never moved it"
    assert {o.decision.status.code for o in outputs[RATE_OVER:]} == {StatusCode.HALT_REQUESTED}
    first = outputs[0].decision
    assert first.status.code is StatusCode.WAITING and first.sample is not None
    assert "Waiting for 21 images of agentview_rgb, eye_in_hand_rgb" in first.status.message
    outputs = Hand(bundle, known=False).drive(STEPS[:30])
    assert [o.command.is_sent for o in outputs] == [False] * RATE_OVER + [True] * (30 - RATE_OVER)
    began = outputs[RATE_OVER].decision.status
    assert (began.code, began.window, began.window_cleared) == (StatusCode.RUNNING, 1, "resume after a halt")


def test_lockstep_begins_an_episode_and_waits_for_its_pose(bundle: Bundle) -> None:
    hand = Hand(bundle, watch=WatchLimits.lockstep(), lockstep=True)
    begun = hand.cycle.begin_episode(3, INSTRUCTIONS[1], seed=7, random_stream=2, stamp=round(STEPS[1].stamp * 1e9))
    assert (begun.stamp, begun.report.episode, begun.publishes_action, begun.command.is_sent) == (
        round(STEPS[1].stamp * 1e9),
        3,
        False,
        False,
    )
    assert hand.server.episode == (7, 2) and hand.server.instruction == INSTRUCTIONS[1]
    hand.send(STEPS[1])
    assert hand.cycle.run(0.0) is None, "an observation from before the episode is dropped"
    hand.send(STEPS[2], without="agentview_rgb")
    assert hand.cycle.run(0.0) is None
    assert hand.cycle.missing_topics == ("/camera/agentview/image_raw",)
    hand.cycle.expects_pose = True
    hand.send(STEPS[2])
    assert hand.cycle.run(0.0) is None and hand.cycle.missing_topics == ("/end_effector_pose",)
    hand.cycle.add_pose(round(STEPS[2].stamp * 1e9), POSE)
    output = hand.cycle.run(0.0)
    assert output is not None and output.command_stamp == output.stamp == round(STEPS[2].stamp * 1e9)
    assert output.command.target_pose is not None and output.report.episode == 3


def test_topics_are_named_as_they_are_here(bundle: Bundle) -> None:
    hand = Hand(bundle, full_name=lambda topic: f"/arm{topic}")
    hand.cycle.count_messages("/joint_states", 3, ["/joint_states: half a message"])
    outputs = hand.drive(STEPS[:22])
    health = next(o.report.health for o in outputs if o.report.health is not None)
    assert dict(health.values)["rate of /arm/joint_states (Hz)"] == "3.0"
    assert dict(health.values)["broken messages"] == "1" and health.level == 1
    assert outputs[-1].report.warnings == ("/joint_states: half a message",)
    hand.cycle.count_messages("/joint_states", 1)
    assert hand.cycle.problems.messages == ()


def test_options_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"slop is 0; "):
        LoopOptions(slop=0)
    with pytest.raises(ConfigError, match=r"timeout is inf; "):
        LoopOptions(timeout=math.inf)


def test_a_namespace_is_before_all_topics_but_diagnostics() -> None:
    left = parse_namespace("left")
    assert left == parse_namespace("/left") == parse_namespace("/left/") == "/left" and parse_namespace("/") == ""
    named = {resolve(topic, namespace=left) for topic in (topics.JOINT_STATES, topics.TWIST, topics.GRIPPER_COMMAND)}
    assert named == {"/left/joint_states", "/left/m2distill_policy/twist", "/left/gripper_command"}
    assert resolve(topics.DIAGNOSTICS, namespace=left) == "/diagnostics"
    remap = parse_remappings(["joint_states:=/arm/joints", "~/twist:=servo/cmd", "/clock:=/x"], left)
    assert remap == {
        "/left/joint_states": "/arm/joints",
        "/left/m2distill_policy/twist": "/left/servo/cmd",
        "/clock": "/x",
    }
    assert (
        topics.relative(topics.TWIST) == "m2distill_policy/twist"
        and topics.relative(topics.TWIST, own=True) == "~/twist"
    )
    for wrong in ("a b", "1a", "a//b", "ä", "~", "a-b", "/a/../b"):
        with pytest.raises(ConfigError, match="namespace"):
            parse_namespace(wrong)
