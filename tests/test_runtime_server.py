"""The server answers every cycle: it drives, or it halts and reports why."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from m2distill_policy.bundle import Bundle
from m2distill_policy.errors import ConfigError, UnknownInstructionError
from m2distill_policy.observation import Observation
from m2distill_policy.runtime.decision import Decision
from m2distill_policy.runtime.engine import EngineError
from m2distill_policy.runtime.mixture import Mixture
from m2distill_policy.runtime.safety import SafetyLimits
from m2distill_policy.runtime.server import PolicyServer
from m2distill_policy.runtime.status import StatusCode
from m2distill_policy.runtime.watchdog import WatchLimits
from tests.bundles import INSTRUCTIONS, Tremor, observations, toy_bundle, toy_contract

CONTRACT = toy_contract()
PERIOD = CONTRACT.period
STEPS = observations(CONTRACT, 40, start=100.0)
DELAY = 0.03  # s between an observation's stamp and the cycle that answers it


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return toy_bundle(tmp_path_factory.mktemp("server") / "bundle")


def make(bundle: Bundle, **options: Any) -> PolicyServer:
    server = PolicyServer(bundle, **{"sampling": "mode", **options})
    server.set_instruction(INSTRUCTIONS[0])
    return server


def drive(server: PolicyServer, steps: Sequence[Observation]) -> list[Decision]:
    return [server.step(o, o.stamp + DELAY) for o in steps]


def ramp(decisions: Sequence[Decision], before: Decision) -> None:
    """Check that the decisions after ``before`` fall linearly to zero motion in 5 cycles (0.25 s) and stay there."""
    for i, decision in enumerate(decisions):
        share = max(0, 4 - i) / 5
        assert np.allclose(decision.action[:6], before.action[:6] * share)
        assert decision.action[6] == before.action[6]
        assert decision.command
        assert decision.sample is None and decision.mixture is None
        assert decision.status.motion == ("halting" if share else "halted")


def test_policy_drives(bundle: Bundle) -> None:
    server = make(bundle)
    decision = drive(server, STEPS[:3])[-1]
    status = decision.status
    assert decision.command and decision.action.shape == (7,) and np.abs(decision.action).max() <= 1
    assert isinstance(decision.mixture, Mixture)
    assert decision.sample is not None and np.array_equal(decision.sample, decision.action)
    assert status.code is StatusCode.RUNNING and "lift the red box" in status.message
    assert (status.motion, status.window, status.overruns, status.warning) == ("running", 3, 0, "")
    assert status.bundle == decision.bundle == bundle.identifier
    assert status.tasks == bundle.task_names
    assert status.stamp == decision.stamp == STEPS[2].stamp
    assert 0 < status.latency < 1


def test_without_an_instruction_nothing_is_sent(bundle: Bundle) -> None:
    server = PolicyServer(bundle)
    for decision in (server.step(STEPS[0], STEPS[0].stamp), server.tick_without_observation(STEPS[0].stamp)):
        assert decision.status.code is StatusCode.NO_INSTRUCTION
        assert decision.status.message == "There is no instruction; send one."
        assert not decision.command and not decision.action.any()


def test_removing_the_instruction_halts(bundle: Bundle) -> None:
    server = make(bundle)
    before = drive(server, STEPS[:3])[-1]
    server.set_instruction("")
    decisions = drive(server, STEPS[3:9])
    ramp(decisions[:5], before)
    assert not decisions[5].command, "the arm is left to others once the ramp is over"


# --- faults: each has its code, its text, and ramps to a halt -----------------------------------------------------


def with_reading(step: Observation, name: str, values: Any) -> Observation:
    return dataclasses.replace(step, proprioception={**step.proprioception, name: np.asarray(values, np.float32)})


def without_view(step: Observation) -> Observation:
    return dataclasses.replace(step, images={"agentview_rgb": step.images["agentview_rgb"]})


def of_wrong_size(step: Observation) -> Observation:
    return dataclasses.replace(step, images={**step.images, "agentview_rgb": np.zeros((16, 32, 3), np.uint8)})


FAULTS: dict[str, tuple[Any, float, StatusCode, str]] = {
    # name: change to the observation, added to now, code, text
    "NaN joint": (
        lambda o: with_reading(o, "joint_states", [0, 0, np.nan, 0, 0, 0, 0]),
        0.0,
        StatusCode.BAD_OBSERVATION,
        "The observation cannot be used: 'joint_states' has a value that is not finite at 'panda_joint3'.",
    ),
    "joint out of range": (
        lambda o: with_reading(o, "gripper_states", [0.0, -3.0]),
        0.0,
        StatusCode.BAD_OBSERVATION,
        "'gripper_states' entry 'panda_finger_joint2' is -3 m; allowed are -0.1 to 0.1.",
    ),
    "too few joints": (
        lambda o: with_reading(o, "joint_states", [0.0] * 6),
        0.0,
        StatusCode.BAD_OBSERVATION,
        "'joint_states' has shape (6,); the contract needs (7,).",
    ),
    "missing view": (without_view, 0.0, StatusCode.BAD_OBSERVATION, "view 'eye_in_hand_rgb' is missing"),
    "NaN frame": (
        lambda o: dataclasses.replace(
            o, images={**o.images, "agentview_rgb": np.full(o.images["agentview_rgb"].shape, np.nan, np.float32)}
        ),
        0.0,
        StatusCode.BAD_OBSERVATION,
        "view 'agentview_rgb' is float32 (",
    ),
    "wrong size": (of_wrong_size, 0.0, StatusCode.BAD_OBSERVATION, "view 'agentview_rgb' is uint8 (16, 32, 3)"),
    "NaN stamp": (
        lambda o: dataclasses.replace(o, stamp=float("nan")),
        0.0,
        StatusCode.BAD_OBSERVATION,
        "The observation's stamp is nan",
    ),
    "stale": (
        lambda o: o,
        0.3,
        StatusCode.STALE_OBSERVATION,
        "The observation is 0.330 s old; at most 0.2 s is allowed.",
    ),
    "future": (
        lambda o: o,
        -0.5,
        StatusCode.FUTURE_STAMP,
        "The observation's stamp is 0.470 s in the future; at most 0.1 s is allowed: synchronise the clocks",
    ),
    "same stamp": (
        lambda o: dataclasses.replace(o, stamp=STEPS[2].stamp),
        0.0,
        StatusCode.REPEATED_STAMP,
        "Two observations have the stamp 100.100 s",
    ),
    "out of order": (
        lambda o: dataclasses.replace(o, stamp=o.stamp - 1.5 * PERIOD),
        0.0,
        StatusCode.OUT_OF_ORDER,
        "The observation's stamp 100.075 s is 0.025 s before that of the observation before",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_fault_ramps_to_a_halt_and_is_reported(bundle: Bundle, name: str) -> None:
    change, shift, code, text = FAULTS[name]
    server = make(bundle)
    before = drive(server, STEPS[:3])[-1]
    sick = change(STEPS[3])
    decisions = [server.step(sick, STEPS[3].stamp + DELAY + shift)]
    assert decisions[0].status.code is code and code.is_fault
    assert text in decisions[0].status.message
    now = STEPS[3].stamp + 1.0
    decisions += [server.tick_without_observation(now + i * PERIOD) for i in range(6)]
    ramp(decisions, before)
    # And it drives on, from an empty window, when the next good observation comes.
    resumed = drive(server, STEPS[30:31])[0]
    assert (resumed.status.code, resumed.status.window) == (StatusCode.RUNNING, 1)
    assert resumed.status.window_cleared == "resume after a halt"


def test_missing_observations_wait_then_halt(bundle: Bundle) -> None:
    server = make(bundle)
    before = drive(server, STEPS[:3])[-1]
    monotonic = STEPS[2].stamp + DELAY
    waiting = [server.tick_without_observation(monotonic + i * PERIOD) for i in (1, 2, 3)]
    for decision in waiting:
        assert decision.status.code is StatusCode.WAITING and not decision.command
        assert decision.status.motion == "running"
    assert "since 0.150 s" in waiting[-1].status.message
    decisions = [server.tick_without_observation(monotonic + i * PERIOD) for i in range(4, 11)]
    ramp(decisions, before)
    assert decisions[0].status.code is StatusCode.MISSING_OBSERVATION
    assert decisions[0].status.message == (
        "No observation for 0.200 s; at most 0.15 s is allowed: "
        "check that all of agentview_rgb, eye_in_hand_rgb, joint_states, gripper_states are published."
    )


def test_one_late_observation_does_not_halt(bundle: Bundle) -> None:
    server = make(bundle)
    drive(server, STEPS[:3])
    assert not server.tick_without_observation(STEPS[2].stamp + DELAY + PERIOD).command
    assert drive(server, STEPS[3:4])[0].status.window == 4


def test_timeout_uses_the_monotonic_clock(bundle: Bundle) -> None:
    """The clock of the stamps may stop (a paused simulation); the timeout still works."""
    server = make(bundle)
    server.step(STEPS[0], STEPS[0].stamp, monotonic=7.0)
    now = STEPS[0].stamp
    assert server.tick_without_observation(now, monotonic=7.1).status.code is StatusCode.WAITING
    assert server.tick_without_observation(now, monotonic=7.2).status.code is StatusCode.MISSING_OBSERVATION


def test_no_observation_at_all(bundle: Bundle) -> None:
    server = make(bundle)
    assert server.tick_without_observation(50.0).status.code is StatusCode.WAITING
    assert server.tick_without_observation(50.2).status.code is StatusCode.MISSING_OBSERVATION


def test_frozen_view(bundle: Bundle) -> None:
    """Fresh stamps, moving joints and the same image: after 10 steps a fault, but not if the joints do not move."""
    frozen = STEPS[0].images["agentview_rgb"]

    def steps(speed: float) -> list[Observation]:
        return [
            dataclasses.replace(
                with_reading(o, "joint_states", np.full(7, i * speed)), images={**o.images, "agentview_rgb": frozen}
            )
            for i, o in enumerate(STEPS[:15])
        ]

    decisions = drive(make(bundle), [with_reading(o, "gripper_states", [0.0, 0.0]) for o in steps(0.01)])
    codes = [d.status.code for d in decisions]
    assert codes == [StatusCode.RUNNING] * 9 + [StatusCode.FROZEN_VIEW] * 6
    assert all(part in decisions[9].status.message for part in ("'agentview_rgb'", "10 steps", "0.090"))
    still = drive(make(bundle), [with_reading(o, "gripper_states", [0.0, 0.0]) for o in steps(0.0001)])
    assert {d.status.code for d in still} == {StatusCode.RUNNING}
    off = drive(make(bundle, watch=WatchLimits(frozen_after=None)), steps(0.01))
    assert {d.status.code for d in off} == {StatusCode.RUNNING}


@pytest.mark.parametrize("ring", [1, 2, 3, 4, 8])
def test_repeated_ring_of_old_images_is_frozen(bundle: Bundle, ring: int) -> None:
    """A dead camera driver repeats its buffers in turn, with fresh stamps."""

    def steps(speed: float, views: Sequence[str]) -> list[Observation]:
        return [
            dataclasses.replace(
                with_reading(o, "joint_states", np.full(7, i * speed)),
                images={**o.images, **{view: STEPS[i % ring].images[view] for view in views}},
            )
            for i, o in enumerate(STEPS)
        ]

    for view in CONTRACT.camera_names:
        codes = [d.status.code for d in drive(make(bundle), steps(0.01, [view]))]
        began = codes.index(StatusCode.FROZEN_VIEW)
        assert began == ring + 8 and set(codes[:began]) == {StatusCode.RUNNING}
        assert set(codes[began:]) == {StatusCode.FROZEN_VIEW}
    still = drive(make(bundle), steps(0.0004, CONTRACT.camera_names))
    assert {d.status.code for d in still} == {StatusCode.RUNNING}


def test_new_images_end_a_frozen_view(bundle: Bundle) -> None:
    server = make(bundle)
    frozen = [dataclasses.replace(o, images=STEPS[i % 2].images) for i, o in enumerate(STEPS[:15])]
    moving = [with_reading(o, "joint_states", np.full(7, 0.01 * i)) for i, o in enumerate(frozen + STEPS[15:])]
    codes = [d.status.code for d in drive(server, moving)]
    assert codes[14] is StatusCode.FROZEN_VIEW and set(codes[15:]) == {StatusCode.RUNNING}


def test_clock_set_back_recovers(bundle: Bundle) -> None:
    server = make(bundle)
    drive(server, STEPS[:3])
    later = observations(CONTRACT, 3, start=20.0)
    codes = [d.status.code for d in drive(server, later)]
    assert codes == [StatusCode.OUT_OF_ORDER, StatusCode.RUNNING, StatusCode.RUNNING]


def test_lockstep_checks_no_clock(bundle: Bundle) -> None:
    server = make(bundle, watch=WatchLimits.lockstep())
    assert server.step(STEPS[0], 0.0).status.code is StatusCode.RUNNING
    assert server.step(STEPS[1], 1e9).status.code is StatusCode.RUNNING
    assert server.tick_without_observation(2e9).status.code is StatusCode.WAITING


def test_engine_failure_and_bad_answers_halt(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    server = make(bundle)
    before = drive(server, STEPS[:2])[-1]
    real = server.engine.step

    def fails(*_: Any) -> Any:
        raise EngineError("the provider is gone")

    def answers_nan(*arguments: Any) -> Any:
        mixture, tokens = real(*arguments)
        return dataclasses.replace(mixture, means=mixture.means * np.nan), tokens

    monkeypatch.setattr(server.engine, "step", fails)
    first = drive(server, STEPS[2:3])[0]
    assert (first.status.code, first.status.message) == (
        StatusCode.ENGINE_FAILED,
        "No action: the provider is gone.",
    )
    monkeypatch.setattr(server.engine, "step", answers_nan)
    second = drive(server, STEPS[3:4])[0]
    assert second.status.code is StatusCode.BAD_OUTPUT
    assert "means are not finite" in second.status.message
    ramp([first, second], before)
    monkeypatch.setattr(server.engine, "step", real)
    assert drive(server, STEPS[4:5])[0].status.window == 1


def test_resume_only_when_enabled_again(bundle: Bundle) -> None:
    server = make(bundle, resume="enable")
    drive(server, STEPS[:3])
    drive(server, [without_view(STEPS[3])])
    held = drive(server, STEPS[4:12])
    assert {d.status.code for d in held} == {StatusCode.HELD}
    assert "view 'eye_in_hand_rgb' is missing" in held[0].status.message
    assert held[0].status.message.endswith("Enable the policy to go on.")
    assert held[-1].status.motion == "halted" and not held[-1].action[:6].any()
    assert held[-1].sample is not None, "what it would do is shown meanwhile"
    server.enable()
    assert drive(server, STEPS[12:13])[0].status.code is StatusCode.RUNNING


# --- enable, halt, limits --------------------------------------------------------------------------------------------


def test_shadow_mode_answers_without_commands(bundle: Bundle) -> None:
    server = make(bundle, enabled=False)
    decisions = drive(server, STEPS[:4])
    assert [d.command for d in decisions] == [False] * 4
    assert all(d.sample is not None and d.mixture is not None and not d.action.any() for d in decisions)
    assert decisions[-1].status.code is StatusCode.DISABLED and decisions[-1].status.window == 4
    driven = drive(make(bundle), STEPS[:4])
    for shadow, drove in zip(decisions, driven, strict=True):
        assert shadow.sample is not None and drove.sample is not None and np.array_equal(shadow.sample, drove.sample)


def test_disable_finishes_the_ramp_and_stops_commands(bundle: Bundle) -> None:
    server = make(bundle)
    before = drive(server, STEPS[:3])[-1]
    server.disable()
    decisions = drive(server, STEPS[3:9])
    for i, decision in enumerate(decisions[:5]):
        assert decision.command and np.allclose(decision.action[:6], before.action[:6] * (4 - i) / 5)
    assert not decisions[5].command
    server.enable()
    assert drive(server, STEPS[9:10])[0].command


def test_requested_halt_stays_until_released(bundle: Bundle) -> None:
    server = make(bundle)
    drive(server, STEPS[:3])
    server.halt("the task was cancelled")
    decisions = drive(server, STEPS[3:12])
    assert {d.status.message for d in decisions} == {"Halted: the task was cancelled."}
    assert decisions[-1].status.motion == "halted"
    assert server.tick_without_observation(STEPS[12].stamp).status.code is StatusCode.HALT_REQUESTED
    server.reset("an empty window is no reason to move")
    server.set_instruction(INSTRUCTIONS[0])  # nor is a publisher that repeats itself
    assert drive(server, STEPS[13:14])[0].status.code is StatusCode.HALT_REQUESTED
    server.set_instruction(INSTRUCTIONS[1])
    assert drive(server, STEPS[14:15])[0].status.code is StatusCode.RUNNING
    server.halt("the task's time is over")
    server.release_halt()
    assert drive(server, STEPS[15:16])[0].status.code is StatusCode.RUNNING


def test_a_requested_halt_does_not_replace_one_that_only_enable_ends(bundle: Bundle) -> None:
    server = make(bundle)
    drive(server, STEPS[:3])
    server.set_emergency_stop(True)
    server.set_emergency_stop(False)
    server.halt("the task was cancelled")
    server.set_instruction(INSTRUCTIONS[1])
    server.release_halt()
    assert {d.status.code for d in drive(server, STEPS[3:10])} == {StatusCode.HELD}
    server.enable()
    assert drive(server, STEPS[10:11])[0].status.code is StatusCode.RUNNING


def test_an_answer_that_took_too_long_is_not_sent(bundle: Bundle) -> None:
    """The ramp to a halt does not start from it either."""
    took = at = 0.0

    def clock() -> float:  # stands still but for one look at it in each decision, the one after the network
        nonlocal at
        at += took
        return at

    server = make(bundle, clock=clock, watch=WatchLimits(stale_after=0.2, overruns_in_a_row=None))
    last = drive(server, STEPS[:5])[-1]
    took = 3.0
    late = drive(server, STEPS[5:6])[0]
    assert late.status.code is StatusCode.STALE_OBSERVATION and late.sample is None
    took = 0.0
    ramp([late, *(server.tick_without_observation(STEPS[5].stamp + 1) for _ in range(4))], last)


def test_the_ramp_to_a_halt_ends_at_the_walls(bundle: Bundle) -> None:
    limits = SafetyLimits(workspace_low=(0.3, -0.2, 0.1), workspace_high=(0.7, 0.2, 0.5), halt_time=1.0)
    middle = np.array([0.5, 0.0, 0.3, 3.1, 0.0, 0.0])
    corner = np.array([0.7, 0.2, 0.5, 3.1, 0.0, 0.0])
    for where, sign in ((corner, 1.0), (np.array([0.3, -0.2, 0.1, 3.1, 0.0, 0.0]), -1.0)):
        server = make(bundle, limits=limits)
        last = server.step(STEPS[0], STEPS[0].stamp + DELAY, pose=middle).action
        server.halt("enough")
        ramped = server.tick_without_observation(STEPS[1].stamp, newest=where).action
        outward = last[:3] * sign > 0
        assert not ramped[:3][outward].any()
        np.testing.assert_allclose(ramped[:3][~outward], last[:3][~outward] * 0.95)
        assert ramped[3:6].any(), "turning is not walled"


def test_limits_apply_to_the_command_and_not_the_sample(bundle: Bundle) -> None:
    speed, acceleration = 0.04, 0.2
    limits = SafetyLimits(speed=(speed,) * 6, acceleration=(acceleration,) * 6)
    decisions = drive(make(bundle, limits=limits), STEPS[:20])
    velocities = np.array([CONTRACT.action.response.twist(d.action) for d in decisions])
    assert np.abs(velocities).max() <= speed + 1e-12
    assert np.abs(np.diff(np.vstack([np.zeros(6), velocities]), axis=0)).max() <= acceleration * PERIOD + 1e-9
    assert max(np.abs(d.sample).max() for d in decisions if d.sample is not None) > 0.5


def test_workspace_needs_the_pose(bundle: Bundle) -> None:
    limits = SafetyLimits(workspace_low=(0.3, -0.2, 0.1), workspace_high=(0.7, 0.2, 0.5))
    server = make(bundle, limits=limits)
    decision = drive(server, STEPS[:1])[0]
    assert decision.status.code is StatusCode.NO_POSE and not decision.action[:6].any()
    pose = np.array([0.7, 0.2, 0.5, 3.1, 0.0, 0.0])
    tremor = Tremor()
    decisions = [server.step(o, o.stamp + DELAY, pose=tremor(pose)) for o in STEPS[1:15]]
    assert {d.status.code for d in decisions} == {StatusCode.RUNNING}
    assert max(d.action[:3].max() for d in decisions) == 0.0
    assert max(d.sample[:3].max() for d in decisions if d.sample is not None) > 0.1, "it did want to go on"
    server.disable()
    assert drive(server, STEPS[15:16])[0].status.code is StatusCode.DISABLED, "in shadow mode it may look on"


def test_emergency_stop_halts_and_releasing_it_does_not_drive(bundle: Bundle) -> None:
    server = make(bundle, resume="auto")
    last = drive(server, STEPS[:5])[-1]
    server.set_emergency_stop(True)
    decisions = drive(server, STEPS[5:11])
    ramp(decisions, last)
    assert {d.status.code for d in decisions} == {StatusCode.EMERGENCY_STOP}
    server.set_instruction(INSTRUCTIONS[1])
    server.reset()
    server.enable()
    assert drive(server, STEPS[11:12])[0].status.code is StatusCode.EMERGENCY_STOP
    assert server.tick_without_observation(STEPS[11].stamp + 9).status.code is StatusCode.EMERGENCY_STOP
    server.set_emergency_stop(False)
    server.set_instruction(INSTRUCTIONS[0])
    server.reset()
    decision = drive(server, STEPS[12:13])[0]
    assert decision.status.code is StatusCode.HELD
    assert decision.status.motion == "halted"
    server.enable()
    assert drive(server, STEPS[13:14])[0].status.code is StatusCode.RUNNING


def test_dead_man_switch_must_be_held_and_repeated(bundle: Bundle) -> None:
    server = make(bundle, watch=WatchLimits(dead_man=0.12))

    def step(i: int) -> Decision:
        return server.step(STEPS[i], STEPS[i].stamp + DELAY, monotonic=i * PERIOD)

    decision = step(0)
    assert decision.status.code is StatusCode.DEAD_MAN
    server.set_dead_man(True, monotonic=0.0)
    assert [step(i).status.code for i in (1, 2, 3)] == [StatusCode.RUNNING, StatusCode.RUNNING, StatusCode.DEAD_MAN]
    assert "0.150 s (at most 0.12 s is allowed)" in step(4).status.message.replace("0.200", "0.150")
    server.set_dead_man(True, monotonic=5 * PERIOD)
    assert step(5).status.code is StatusCode.RUNNING
    server.set_dead_man(False, monotonic=6 * PERIOD)
    assert step(6).status.code is StatusCode.DEAD_MAN
    assert server.tick_without_observation(0.0, monotonic=6 * PERIOD).status.code is StatusCode.DEAD_MAN
    assert not make(bundle).step(STEPS[0], STEPS[0].stamp).status.code.is_fault, "where there is none, none is needed"
    shadow = make(bundle, watch=WatchLimits(dead_man=0.12), enabled=False)
    decision = shadow.step(STEPS[0], STEPS[0].stamp)
    assert decision.status.code is StatusCode.DISABLED and decision.sample is not None, "nothing moves in shadow mode"


def test_overruns_are_counted_and_several_in_a_row_halt_until_enable(bundle: Bundle) -> None:
    slow = True
    at = 0.0

    def clock() -> float:  # every look at it is 0.06 s after the one before, or none
        nonlocal at
        at += 0.06 if slow else 0.0
        return at

    server = make(bundle, clock=clock)
    assert [d.status.overruns for d in drive(server, STEPS[:2])] == [1, 2]
    slow = False
    assert drive(server, STEPS[2:3])[0].status.code is StatusCode.RUNNING
    slow = True
    codes = [d.status.code for d in drive(server, STEPS[3:6])]
    assert codes == [StatusCode.RUNNING, StatusCode.RUNNING, StatusCode.DEADLINE_MISSED]
    slow = False
    decisions = drive(server, STEPS[6:14])
    assert {d.status.code for d in decisions} == {StatusCode.DEADLINE_MISSED}
    assert "3 decisions in a row took longer than 0.05 s" in decisions[0].status.message
    assert decisions[-1].status.motion == "halted" and decisions[-1].status.overruns == 5
    server.enable()
    assert drive(server, STEPS[14:15])[0].status.code is StatusCode.RUNNING


# --- random numbers --------------------------------------------------------------------------------------------------


def test_episode_streams_are_reproducible(bundle: Bundle) -> None:
    server = make(bundle, sampling="sample", seed=5, watch=WatchLimits.lockstep())

    def episode() -> list[bytes]:
        return [d.action.tobytes() for d in drive(server, STEPS[:4])]

    first = episode()
    assert server.episode == (5, 0)
    server.reset()
    server.reset()  # nothing was answered in between: still the same episode
    assert server.episode == (5, 1)
    second = episode()
    assert second != first
    server.reset(seed=5)
    assert episode() == first
    server.reset(seed=5, episode=1)
    assert episode() == second
    server.reset(seed=6)
    assert episode() not in (first, second)
    # The documented stream.
    server.reset(seed=5, episode=1)
    decision = drive(server, STEPS[:1])[0]
    assert decision.mixture is not None
    expected = decision.mixture.sample("sample", np.random.default_rng([5, 1]))
    assert decision.sample is not None and np.array_equal(decision.sample, expected)


def test_reset_of_a_stationary_arm_clears_the_last_command(bundle: Bundle) -> None:
    limits = SafetyLimits(acceleration=(0.2,) * 6, jerk=(2.0,) * 6)
    server = make(bundle, limits=limits, watch=WatchLimits.lockstep())
    first = [d.action for d in drive(server, STEPS[:5])]
    server.reset("a new rollout", seed=0, is_stationary=True)
    assert np.array_equal(first, [d.action for d in drive(server, STEPS[:5])])


def test_options_are_checked(bundle: Bundle) -> None:
    for options, text in (
        ({"sampling": "best"}, "sampling 'best' is unknown"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"resume": "later"}, "resume is 'later'; choose 'auto' or 'enable'"),
        ({"swap_when": "never"}, "swap_when is 'never'; choose 'idle' or 'now'"),
        ({"provider": "tpu"}, "provider 'tpu' is unknown"),
    ):
        with pytest.raises(ConfigError, match=text):
            make(bundle, **options)
    with pytest.raises(ConfigError, match="watchdog limit 'stale_after' is -1"):
        WatchLimits(stale_after=-1)
    with pytest.raises(ConfigError, match="'frozen_after' is 1; 2 to"):
        WatchLimits(frozen_after=1)


def test_an_instruction_that_the_network_fails_on_halts(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    server = make(bundle)
    drive(server, STEPS[:3])

    def fails(*_: Any) -> Any:
        raise EngineError("the GPU is gone")

    monkeypatch.setattr(server.engine, "condition", fails)
    with pytest.raises(EngineError):
        server.set_instruction(INSTRUCTIONS[1])
    status = drive(server, STEPS[3:4])[0].status
    assert status.code is StatusCode.ENGINE_FAILED and status.motion == "halting"
    assert "the GPU is gone" in status.message
    monkeypatch.undo()
    server.set_instruction(INSTRUCTIONS[1])
    assert drive(server, STEPS[4:5])[0].status.code is StatusCode.RUNNING


def test_unknown_instruction_is_raised_and_stays_in_the_status(bundle: Bundle) -> None:
    server = make(bundle)
    with pytest.raises(UnknownInstructionError, match="did you mean 'lift the green box'"):
        server.set_instruction("lift the greenish box")
    status = server.tick_without_observation(0.0).status
    assert status.code is StatusCode.UNKNOWN_INSTRUCTION and "did you mean 'lift the green box'?" in status.message
