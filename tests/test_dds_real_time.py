"""Real time over real DDS, in two processes: hot swaps, faults, and how the node leaves."""

from __future__ import annotations

import dataclasses
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from m2distill_policy.bundle import open_bundle
from m2distill_policy.dds.domain import reserve_domain
from m2distill_policy.dds.image import Image
from m2distill_policy.dds.m2distill_msgs import PolicyAction
from m2distill_policy.dds.messages import MESSAGES
from m2distill_policy.dds.participant import Participant
from m2distill_policy.dds.policy_node import PolicyNode
from m2distill_policy.dds.qos import Profile
from m2distill_policy.dds.types import Bool, DiagnosticArray, Header, PoseStamped, String, Time
from m2distill_policy.errors import TransportError
from m2distill_policy.node import topics
from m2distill_policy.runtime.server import PolicyServer
from m2distill_policy.runtime.status import StatusCode, SwapState
from m2distill_policy.sim_robot.robot import RobotOptions, Rollout
from tests.bundles import INSTRUCTIONS, observations, toy_contract, write_toy
from tests.dds_support import Robot, StillWorld, child, sim_robot

CONTRACT = toy_contract()


@pytest.fixture
def domain() -> Iterator[int]:
    with reserve_domain() as reserved:
        yield reserved


def _drive_until(robot: Robot, code: StatusCode, what: str, *, without: tuple[str, ...] = ()) -> None:
    """Say observations until the policy answers one with ``code``."""
    deadline = time.monotonic() + 15
    while not any(s.code == code for s in robot.heard["status"]):
        assert time.monotonic() < deadline, f"no {what}; the last status was {robot.heard['status'][-1:]}"
        robot.drive(observations(CONTRACT, 4, seed=int(time.monotonic() * 1000)), without=without)


def test_hot_swap_by_rename_while_the_robot_runs(tmp_path: Path, domain: int) -> None:
    """A broken bundle is refused by name and the old policy goes on; a good one takes over between two cycles.

    That a swap costs no cycle is measured by ``benchmarks/command_latency.py``: a test shares its machine with others,
    and an observation that comes right after another one because this process had to wait may go unanswered.
    """
    first = open_bundle(write_toy(tmp_path / "first", seed=0))
    second = open_bundle(write_toy(tmp_path / "second", seed=1))
    broken = write_toy(tmp_path / "broken", seed=2)
    step = broken / "step.onnx"
    step.write_bytes(step.read_bytes()[:-1] + b"x")
    watched = tmp_path / "watched"
    watched.mkdir()
    told = ("--instruction", INSTRUCTIONS[0], "--watch", watched, "--swap-when", "now")
    with child(tmp_path, "serve", first.path, "--domain", domain, *told) as policy, Participant(domain) as participant:
        robot = Robot(participant, CONTRACT)
        robot.meet()
        _drive_until(robot, StatusCode.RUNNING, "first answer")
        stamps = robot.drive(observations(CONTRACT, 10))
        broken.rename(watched / "broken")
        stamps += robot.drive(observations(CONTRACT, 40, seed=1))
        refused = [s for s in robot.heard["status"] if s.swap == SwapState.REFUSED]
        assert refused and "'broken' was refused" in refused[-1].swap_sentence
        assert "step.onnx" in refused[-1].swap_sentence and "changed or damaged" in refused[-1].swap_sentence
        assert refused[-1].bundle == first.identifier
        (tmp_path / "second").rename(watched / "second")
        stamps += robot.drive(observations(CONTRACT, 60, seed=2))
        robot.listen()
        answered = {a.header.stamp.nanoseconds: a.bundle for a in robot.heard["action"]}
        who = [answered[stamp] for stamp in stamps if stamp in answered]
        assert len(who) > 0.8 * len(stamps)
        switch = who.index(second.identifier)
        assert who == [first.identifier] * switch + [second.identifier] * (len(who) - switch)
        assert 0.4 * len(stamps) < switch < len(who) - 5
        windows = {s.header.stamp.nanoseconds: s.window for s in robot.heard["status"]}
        first_of_second = next(stamp for stamp in stamps if answered.get(stamp) == second.identifier)
        before = max(stamp for stamp in stamps if answered.get(stamp) == first.identifier)
        # The new network had been fed the kept steps, unless a hiccup cleared the window just then.
        assert windows[first_of_second] == min(windows[before] + 1, 10) or first_of_second - before > 75_000_000
        assert policy.end() == 0


def test_sigterm_ramps_to_a_halt_and_exits_0(tmp_path: Path, domain: int) -> None:
    bundle = write_toy(tmp_path / "toy")
    told = ("--instruction", INSTRUCTIONS[0], "--set", "safety.halt_time=0.5")
    with (
        child(tmp_path, "serve", bundle, "--domain", domain, *told) as policy,
        Participant(domain) as participant,
    ):
        robot = Robot(participant, CONTRACT)
        robot.meet()
        _drive_until(robot, StatusCode.RUNNING, "first answer")
        policy.process.send_signal(signal.SIGTERM)
        for observation in observations(CONTRACT, 16):
            robot.instruction.write(String(INSTRUCTIONS[0]))  # as operators' tools repeat it: no halt is undone by it
            robot.drive([observation])
        assert policy.wait(10) == 0
        robot.listen()
        codes = [s.code for s in robot.heard["status"]]
        halting = robot.heard["status"][codes.index(StatusCode.HALT_REQUESTED) :]
        assert [s.motion for s in halting] == [1] * 9 + [2] and halting[-1].halted
        assert "SIGTERM" in halting[0].sentence
        ramp = [a for a in robot.heard["action"] if a.command][-11:]
        sizes = [float(np.abs(a.action[:6]).max()) for a in ramp]
        assert sizes[0] > 0.1 and sizes[-1] == 0.0
        np.testing.assert_allclose(np.diff(sizes), -sizes[0] / 10, atol=1e-9)
        # The gripper keeps what it holds, and the velocity ends at zero too.
        assert len({a.action[6] for a in ramp}) == 1
        last = robot.heard["twist"][-1].twist
        assert (last.linear.x, last.linear.y, last.linear.z, last.angular.x) == (0, 0, 0, 0)
        assert "halted after" in policy.output


def test_the_operator_has_the_last_word(tmp_path: Path, domain: int) -> None:
    """The arm moves only while the dead-man switch says that it is held, and not after an emergency stop."""
    bundle = write_toy(tmp_path / "toy")
    told = ("--instruction", INSTRUCTIONS[0], "--set", "watch.dead_man=0.3")
    with child(tmp_path, "serve", bundle, "--domain", domain, *told), Participant(domain) as participant:
        robot = Robot(participant, CONTRACT)
        dead_man = participant.writer(topics.DEAD_MAN, Bool)
        emergency = participant.writer(topics.EMERGENCY_STOP, Bool)
        robot.meet()
        _drive_until(robot, StatusCode.DEAD_MAN, "a dead-man switch that says nothing")
        for observation in observations(CONTRACT, 10):
            dead_man.write(Bool(True))
            robot.drive([observation])
        robot.listen()
        assert robot.heard["status"][-1].code == StatusCode.RUNNING
        robot.heard["status"].clear()
        _drive_until(robot, StatusCode.DEAD_MAN, "the switch's silence")
        emergency.write(Bool(True))
        dead_man.write(Bool(True))
        _drive_until(robot, StatusCode.EMERGENCY_STOP, "the emergency stop")
        emergency.write(Bool(False))
        _drive_until(robot, StatusCode.HELD, "the halt that stays")
        robot.instruction.write(String(INSTRUCTIONS[1]))
        for observation in observations(CONTRACT, 10):
            dead_man.write(Bool(True))
            robot.drive([observation])
        robot.listen()
        last = robot.heard["status"][-1]
        assert last.code == StatusCode.HELD and last.halted and last.instruction == INSTRUCTIONS[1]


def test_faults_are_named_and_pass(tmp_path: Path, domain: int) -> None:
    """A camera stops; a picture is half written; a joint is missing; an instruction is unknown. Then all is well."""
    bundle = write_toy(tmp_path / "toy")
    with child(tmp_path, "serve", bundle, "--domain", domain) as policy, Participant(domain) as participant:
        robot = Robot(participant, CONTRACT)
        health = participant.reader("/diagnostics", DiagnosticArray, depth=50)
        robot.meet()
        _drive_until(robot, StatusCode.NO_INSTRUCTION, "status without an instruction")
        robot.instruction.write(String("lift the rad box"))
        _drive_until(robot, StatusCode.UNKNOWN_INSTRUCTION, "refusal of an unknown instruction")
        refusal = next(s for s in robot.heard["status"] if s.code == StatusCode.UNKNOWN_INSTRUCTION)
        assert all(text in refusal.sentence for text in ("lift the rad box", *INSTRUCTIONS))
        robot.instruction.write(String(INSTRUCTIONS[1]))
        _drive_until(robot, StatusCode.RUNNING, "answer")

        camera, other = CONTRACT.camera_names
        robot.drive(observations(CONTRACT, 12), without=(camera,))
        _drive_until(robot, StatusCode.MISSING_OBSERVATION, "halt without a camera", without=(camera,))
        missing = [s for s in robot.heard["status"] if s.code == StatusCode.MISSING_OBSERVATION]
        assert camera in missing[-1].sentence and missing[-1].motion in (1, 2)

        robot.heard["status"].clear()
        _drive_until(robot, StatusCode.RUNNING, "answer after the camera came back")
        again = next(s for s in robot.heard["status"] if s.code == StatusCode.RUNNING)
        assert again.window == 1 and again.window_cleared

        for half in observations(CONTRACT, 3):
            at = Time.from_nanoseconds(time.time_ns())
            robot.say(half, at.nanoseconds, without=(other,))
            size = CONTRACT.camera(other)
            robot.views[other].write(
                Image(Header(at, ""), size.height, size.width, "rgb8", 0, size.width * 3, bytes(100))
            )
            time.sleep(0.05)
        bad = robot.status(lambda s: s.code == StatusCode.BAD_OBSERVATION, "a half-written picture")
        assert f"'{other}' is missing" in bad.sentence
        assert f"view '{other}': image is incomplete" in bad.warning and "100 bytes came" in bad.warning

        robot.heard["status"].clear()
        nameless = observations(CONTRACT, 1)[0]
        groups = dict(nameless.proprioception)
        groups["joint_states"] = groups["joint_states"].copy()
        groups["joint_states"][2] = np.nan
        robot.say(dataclasses.replace(nameless, proprioception=groups), time.time_ns())
        bad = robot.status(lambda s: s.code == StatusCode.BAD_OBSERVATION, "a joint that is not finite")
        assert "panda_joint3" in bad.sentence

        robot.heard["status"].clear()
        _drive_until(robot, StatusCode.RUNNING, "answer in the end")
        reports = health.take()
        assert reports, "no /diagnostics in several seconds"
        entry = reports[-1].status[0]
        values = {pair.key: pair.value for pair in entry.values}
        assert values["bundle"] == open_bundle(bundle).identifier and values["provider"] == "CPUExecutionProvider"
        assert policy.end() == 0


def test_a_camera_that_is_too_slow_is_refused(tmp_path: Path, domain: int) -> None:
    bundle = write_toy(tmp_path / "toy")
    told = ("--instruction", INSTRUCTIONS[0])
    with child(tmp_path, "serve", bundle, "--domain", domain, *told), Participant(domain) as participant:
        robot = Robot(participant, CONTRACT)
        robot.meet()
        robot.drive(observations(CONTRACT, 26), hz=10)
        refusal = robot.status(lambda s: s.code == StatusCode.HALT_REQUESTED, "the slow camera")
        assert "sends 10." in refusal.sentence or "sends 9." in refusal.sentence, refusal.sentence
        assert "the policy needs 20" in refusal.sentence
        # Told again, as the sentence says, but the camera is as slow as before.
        robot.heard["status"].clear()
        for observation in observations(CONTRACT, 10, seed=1):
            robot.instruction.write(String(INSTRUCTIONS[0]))
            robot.drive([observation], hz=10)
        assert StatusCode.RUNNING not in {s.code for s in robot.heard["status"]}


def test_a_pose_that_stops_coming_is_named_and_not_used(tmp_path: Path, domain: int) -> None:
    bundle = write_toy(tmp_path / "toy")
    told = ("--instruction", INSTRUCTIONS[0])
    with child(tmp_path, "serve", bundle, "--domain", domain, *told), Participant(domain) as participant:
        robot = Robot(participant, CONTRACT)
        pose = participant.writer(topics.END_EFFECTOR_POSE, PoseStamped, Profile.RELIABLE)
        targets = participant.reader(topics.TARGET_POSE, PoseStamped, Profile.RELIABLE, depth=100)
        robot.meet()
        participant.wait_for_peers([pose, targets], 20, "the child should be there")
        _drive_until(robot, StatusCode.RUNNING, "first answer")
        for observation in observations(CONTRACT, 12):
            where = np.array([0.4, 0.0, 0.3, np.pi, 0.0, 0.0])
            pose.write(MESSAGES.pose(where, time.time_ns(), "base"))
            robot.drive([observation])
        assert len(targets.take()) >= 6
        robot.drive(observations(CONTRACT, 6, seed=1))
        robot.heard["status"].clear()
        targets.take()
        robot.drive(observations(CONTRACT, 6, seed=2))
        assert not targets.take(), "no set-point from where the arm may not be any more"
        assert any("No pose on" in s.warning for s in robot.heard["status"])


@pytest.mark.parametrize("ramp_fails", [False, True])
def test_an_error_that_nobody_expects_halts_first_and_is_raised(
    tmp_path: Path, domain: int, ramp_fails: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = PolicyServer(open_bundle(write_toy(tmp_path / "toy")), sampling="mode")
    server.set_instruction(INSTRUCTIONS[0])
    for observation in observations(CONTRACT, 3):
        server.step(observation, observation.stamp)
    assert server.motion.value == "running"
    reasons: list[str] = []
    halt = server.halt

    def remember(reason: str) -> None:
        reasons.append(reason)
        halt(reason)

    monkeypatch.setattr(server, "halt", remember)

    def fails(*_: object) -> int:
        raise RuntimeError("a bug")

    with Participant(domain) as participant:
        node = PolicyNode(participant, server)
        monkeypatch.setattr(node, "_take_inputs", fails)
        if ramp_fails:
            monkeypatch.setattr(node, "_publish", fails)
        with pytest.raises(RuntimeError, match="a bug"):
            node.spin()
    if ramp_fails:
        assert "the ramp to a halt failed too" in caplog.text
    else:
        assert server.motion.value == "halted" and node.cycles == 5
    assert reasons == ["the node failed (RuntimeError: a bug)"]
    server.close()


def test_in_shadow_mode_the_robot_holds_still(tmp_path: Path, domain: int) -> None:
    bundle = write_toy(tmp_path / "toy")
    with child(tmp_path, "serve", bundle, "--domain", domain, "--shadow"), Participant(domain) as participant:
        world = StillWorld(CONTRACT, horizon=20)
        options = RobotOptions(instruction=INSTRUCTIONS[0], record_actions=True)
        robot = sim_robot(participant, world, lockstep=False, options=options)
        listener = participant.reader("~/action", PolicyAction, depth=100)
        (report,) = robot.run([Rollout(0, 0, 0)])
        assert report.held_still == report.steps == 20
        assert not np.any(np.array(report.actions)[:, :6])
        answers = [a for a in listener.take() if a.instruction]
        assert len(answers) >= 5 and not any(a.command for a in answers) and all(a.modes == 3 for a in answers)


def test_in_real_time_an_unknown_instruction_is_refused(tmp_path: Path, domain: int) -> None:
    bundle = write_toy(tmp_path / "toy")
    with child(tmp_path, "serve", bundle, "--domain", domain), Participant(domain) as participant:
        robot = sim_robot(
            participant, StillWorld(CONTRACT), lockstep=False, options=RobotOptions(instruction="lift the rad box")
        )
        with pytest.raises(TransportError, match="did you mean 'lift the red box'"):
            robot.run([Rollout(0, 0, 0)])


def test_in_real_time_the_robot_follows(tmp_path: Path, domain: int) -> None:
    bundle = write_toy(tmp_path / "toy")
    with child(tmp_path, "serve", bundle, "--domain", domain) as policy, Participant(domain) as participant:
        world = StillWorld(CONTRACT, horizon=40)
        robot = sim_robot(
            participant, world, lockstep=False, options=RobotOptions(follow="twist", instruction=INSTRUCTIONS[0])
        )
        begin = time.monotonic()
        (report,) = robot.run([Rollout(0, 0, 0)])
        assert 1.9 < time.monotonic() - begin < 6
        assert report.steps == 40 and report.held_still < 40 and report.bundles == [open_bundle(bundle).identifier]
        assert policy.end() == 0
