"""Requests of operators to the policy server: a refused request changes nothing, and the reply names all obstacles."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from m2distill_policy.bundle import open_bundle
from m2distill_policy.errors import UnknownInstructionError
from m2distill_policy.node import topics
from m2distill_policy.node.other_publishers import QUIET, OtherPublishers
from m2distill_policy.node.real_time import RealTimeLoop
from m2distill_policy.runtime.decision import Decision
from m2distill_policy.runtime.engine import EngineError
from m2distill_policy.runtime.hotswap import SwapError
from m2distill_policy.runtime.safety import SafetyLimits
from m2distill_policy.runtime.server import PolicyServer
from m2distill_policy.runtime.status import StatusCode
from m2distill_policy.runtime.watchdog import Fault, WatchLimits
from tests.bundles import INSTRUCTIONS, observations, server_state, toy_contract, write_toy

CONTRACT = toy_contract()
POSE = np.array([0.4, 0.0, 0.3, np.pi, 0.0, 0.0])


def _server(folder: Path, **settings: object) -> PolicyServer:
    return PolicyServer(open_bundle(write_toy(folder / "toy")), sampling="mode", **settings)  # type: ignore[arg-type]


def _drive(server: PolicyServer, count: int = 3, pose: np.ndarray | None = None) -> list[Decision]:
    start = int(server.episode[1]) * 1000 + _drive.done  # type: ignore[attr-defined]
    _drive.done += count  # type: ignore[attr-defined]
    found = []
    for at, observation in enumerate(observations(CONTRACT, count, seed=start)):
        stamp = 100.0 + (start + at) * CONTRACT.period
        found.append(server.step(dataclasses.replace(observation, stamp=stamp), stamp, monotonic=stamp, pose=pose))
    return found


_drive.done = 0  # type: ignore[attr-defined]


def _driving(server: PolicyServer) -> None:
    server.set_instruction(INSTRUCTIONS[0])
    assert _drive(server)[-1].status.code is StatusCode.RUNNING


def _in_shadow(server: PolicyServer) -> None:
    server.disable()
    server.set_instruction(INSTRUCTIONS[0])
    _drive(server, 8)


def _halted(server: PolicyServer) -> None:
    _driving(server)
    server.halt("a test")
    _drive(server, 8)


def _pressed(server: PolicyServer) -> None:
    _driving(server)
    server.set_emergency_stop(True)
    _drive(server, 8)


def _no_instruction(server: PolicyServer) -> None:
    _drive(server)


def _unknown_instruction(server: PolicyServer) -> None:
    with pytest.raises(UnknownInstructionError):
        server.set_instruction("sing a song")
    _drive(server)


STATES: dict[str, Callable[[PolicyServer], None]] = {
    "driving": _driving,
    "in shadow": _in_shadow,
    "halted": _halted,
    "emergency stop": _pressed,
    "no instruction": _no_instruction,
    "unknown instruction": _unknown_instruction,
}
UNKNOWN = ("sing a song", "lift the rad box", " " + INSTRUCTIONS[0], INSTRUCTIONS[0].upper(), "x" * 100_000, "\0", "🤖")


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("text", UNKNOWN, ids=lambda text: repr(text[:20]))
def test_a_refused_instruction_changes_nothing(tmp_path: Path, state: str, text: str) -> None:
    server = _server(tmp_path)
    STATES[state](server)
    before = server_state(server)
    with pytest.raises(UnknownInstructionError):
        server.require_known(text)
    with pytest.raises(UnknownInstructionError):
        server.set_instruction(text, keep_on_refusal=True)
    with pytest.raises(SwapError):
        server.rollback()
    assert server_state(server) == before
    server.close()


@pytest.mark.parametrize("state", STATES)
def test_queries_change_nothing(tmp_path: Path, state: str) -> None:
    server = _server(tmp_path)
    STATES[state](server)
    before = server_state(server)
    for text in ("", *INSTRUCTIONS):
        server.require_known(text)
    server.obstacles(0.0)
    server.refusal_to_enable(0.0)
    assert server_state(server) == before
    server.close()


def test_a_network_that_fails_on_an_instruction_refuses_it_without_a_halt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = _server(tmp_path)
    _driving(server)
    before = server_state(server)

    def fails(instruction: str) -> None:
        raise EngineError(f"no memory for {instruction}")

    monkeypatch.setattr(server.engine, "condition", fails)
    for ask in (server.require_known, lambda text: server.set_instruction(text, keep_on_refusal=True)):
        with pytest.raises(EngineError):
            ask(INSTRUCTIONS[1])
    assert server_state(server) == before
    assert _drive(server)[-1].status.code is StatusCode.RUNNING
    with pytest.raises(EngineError):
        server.set_instruction(INSTRUCTIONS[1])
    assert _drive(server)[-1].status.code is StatusCode.ENGINE_FAILED, "on the topic it halts"
    server.close()


def test_an_unknown_text_on_the_topic_halts(tmp_path: Path) -> None:
    server = _server(tmp_path)
    _driving(server)
    cycle = RealTimeLoop(server, lambda frame: frame)
    cycle.operator.set_instruction("sing a song")
    assert _drive(server, 8)[-1].status.code is StatusCode.UNKNOWN_INSTRUCTION and server.motion.value == "halted"
    server.close()


# --- ~/enable reports what prevents driving --------------------------------------------------------------------------


def _cycle(server: PolicyServer) -> tuple[RealTimeLoop[object], list[float]]:
    now = [1000.0]
    return RealTimeLoop(server, lambda frame: frame, monotonic=lambda: now[0]), now  # type: ignore[arg-type, return-value]


OBSTACLES: dict[str, tuple[Callable[[PolicyServer, RealTimeLoop[object]], object], str]] = {
    "no instruction": (lambda s, _: s.set_instruction(""), "no instruction"),
    "not measured": (lambda s, _: s.set_not_ready("Waiting for 21 images of a."), "21 images"),
    "another publisher": (lambda _, c: c.operator.other_command(topics.TWIST), "/twist'"),
    "dead man": (lambda s, _: s.set_dead_man(False, monotonic=1000.0), "dead-man"),
}


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_enable_reports_what_prevents_driving(tmp_path: Path, obstacle: str) -> None:
    act, part = OBSTACLES[obstacle]
    server = _server(tmp_path, enabled=False, watch=WatchLimits(dead_man=0.3))
    server.set_dead_man(True, monotonic=1000.0)
    server.set_instruction(INSTRUCTIONS[0])
    _drive(server)
    cycle, _ = _cycle(server)
    assert cycle.operator.enable(True) == (True, "commands are sent")
    cycle.operator.enable(False)
    act(server, cycle)
    done, message = cycle.operator.enable(True)
    assert done and server.enabled and part in message and message != "commands are sent", message
    server.close()


def test_enable_reports_all_obstacles(tmp_path: Path) -> None:
    server = _server(tmp_path, enabled=False)
    _unknown_instruction(server)
    server.set_not_ready("Waiting for 21 images of a.")
    done, message = _cycle(server)[0].operator.enable(True)
    assert done and "sing a song" in message and "21 images" in message
    server.close()


def test_enable_reports_missing_and_unusable_observations(tmp_path: Path) -> None:
    server = _server(tmp_path, enabled=False)
    server.set_instruction(INSTRUCTIONS[0])
    cycle, _ = _cycle(server)
    for monotonic in (0.0, 1.0):
        server.tick_without_observation(100.0 + monotonic, monotonic=monotonic)
    assert "No observation for" in cycle.operator.enable(True)[1]
    (observation,) = observations(CONTRACT, 1)
    server.step(dataclasses.replace(observation, stamp=1.0), 9.0, monotonic=2.0)
    assert "old" in cycle.operator.enable(True)[1]
    server.close()


def test_enable_reports_that_a_workspace_needs_a_pose(tmp_path: Path) -> None:
    limits = SafetyLimits(workspace_low=(0.2, -0.3, 0.1), workspace_high=(0.6, 0.3, 0.5))
    server = _server(tmp_path, enabled=False, limits=limits)
    server.set_instruction(INSTRUCTIONS[0])
    _drive(server)
    cycle, _ = _cycle(server)
    assert "pose of the end effector" in cycle.operator.enable(True)[1]
    _drive(server, pose=POSE)
    assert cycle.operator.enable(True) == (True, "commands are sent")
    server.close()


def test_enable_is_refused_with_the_emergency_stop_pressed_and_changes_nothing(tmp_path: Path) -> None:
    server = _server(tmp_path, enabled=False)
    server.set_instruction(INSTRUCTIONS[0])
    server.set_emergency_stop(True)
    _drive(server)
    cycle, _ = _cycle(server)
    before = server_state(server)
    done, message = cycle.operator.enable(True)
    assert not done and "emergency stop" in message and server_state(server) == before
    server.set_emergency_stop(False)
    assert cycle.operator.enable(True)[0] and _drive(server)[-1].status.code is StatusCode.RUNNING
    server.close()


def test_enable_is_refused_while_a_fault_lasts(tmp_path: Path) -> None:
    """With resume "enable", a lasting fault would end the enabling in the next cycle."""
    server = _server(tmp_path, resume="enable", watch=WatchLimits(dead_man=0.3))
    server.set_dead_man(True, monotonic=1000.0)
    server.set_instruction(INSTRUCTIONS[0])
    cycle, _ = _cycle(server)
    server.set_dead_man(False, monotonic=1000.0)
    _drive(server)
    before = server_state(server)
    done, message = cycle.operator.enable(True)
    assert not done and "dead-man" in message and server_state(server) == before
    server.set_dead_man(True, monotonic=1000.0)
    assert cycle.operator.enable(True) == (True, "commands are sent")
    server.close()


def test_node_that_shuts_down_cannot_be_enabled(tmp_path: Path) -> None:
    server = _server(tmp_path)
    _driving(server)
    cycle, _ = _cycle(server)
    cycle.shut_down("a test")
    before = server_state(server)
    assert not cycle.operator.enable(True)[0]
    cycle.operator.enable_by_message(True)
    assert server_state(server) == before
    server.close()


def test_repeated_enable_message_does_not_restart_a_halted_arm(tmp_path: Path) -> None:
    server = _server(tmp_path, enabled=False)
    server.set_instruction(INSTRUCTIONS[0])
    cycle, now = _cycle(server)
    cycle.operator.enable_by_message(True)
    assert server.enabled and _drive(server)[-1].status.code is StatusCode.RUNNING
    server.set_emergency_stop(True)
    server.set_emergency_stop(False)
    for pause in (0.01, 0.1, 0.5, 1.0, 1.0, 10.0, 1000.0):
        now[0] += pause
        cycle.operator.enable_by_message(True)
        assert _drive(server, 1)[-1].status.code is StatusCode.HELD
        assert any("enable" in text for text in cycle.problems.messages)
    cycle.operator.enable_by_message(False)
    cycle.operator.enable_by_message(True)
    assert _drive(server)[-1].status.code is StatusCode.RUNNING and not cycle.problems.messages
    cycle.operator.enable_by_message(True)
    assert server.enabled and not cycle.problems.messages, "repeated while it drives is no fault"
    cycle.operator.enable_by_message(False)
    assert not server.enabled
    cycle.operator.enable_by_message(True)
    assert server.enabled, "the opposite is another word"
    server.close()


def test_one_of_several_publishers_cannot_release_an_emergency_stop(tmp_path: Path) -> None:
    server = _server(tmp_path)
    _driving(server)
    cycle, _ = _cycle(server)
    cycle.operator.set_emergency_stop(True, publishers=1)
    cycle.operator.set_emergency_stop(False, publishers=2)
    assert _drive(server)[-1].status.code is StatusCode.EMERGENCY_STOP and cycle.problems.messages
    assert not cycle.operator.enable(True)[0]
    cycle.operator.set_emergency_stop(False, publishers=1)
    assert not cycle.problems.messages and cycle.operator.enable(True)[0]
    cycle.operator.set_emergency_stop(True, publishers=2)
    assert _drive(server)[-1].status.code is StatusCode.EMERGENCY_STOP
    server.close()


def test_dead_man_switch_with_two_publishers_counts_as_released(tmp_path: Path) -> None:
    server = _server(tmp_path, watch=WatchLimits(dead_man=0.5))
    cycle, now = _cycle(server)
    server.set_instruction(INSTRUCTIONS[0])
    cycle.operator.set_dead_man(True)
    assert server.obstacles(now[0]) == ()
    cycle.operator.set_dead_man(True, publishers=2)
    assert StatusCode.DEAD_MAN in {fault.code for fault in server.obstacles(now[0])} and cycle.problems.messages
    cycle.operator.set_dead_man(True, publishers=1)
    assert server.obstacles(now[0]) == () and not cycle.problems.messages
    server.close()


def test_enable_does_not_continue_a_task_that_a_fault_ended(tmp_path: Path) -> None:
    server = _server(tmp_path)
    _driving(server)
    server.set_emergency_stop(True)
    server.halt_after_enable("the task ended with a fault; send it again")
    server.set_emergency_stop(False)
    assert _drive(server)[-1].status.code is StatusCode.HELD
    done, message = _cycle(server)[0].operator.enable(True)
    assert done and "send it again" in message
    assert _drive(server, 8)[-1].status.code is StatusCode.HALT_REQUESTED
    server.set_instruction(INSTRUCTIONS[1])
    assert _drive(server)[-1].status.code is StatusCode.RUNNING
    server.close()


def test_while_another_publisher_commands_the_arm_it_halts_and_then_sends_nothing(tmp_path: Path) -> None:
    server = _server(tmp_path)
    _driving(server)
    server.set_other_publisher("Another node publishes '/twist'.")
    decisions = _drive(server, 10)
    assert all(d.status.code is StatusCode.OTHER_PUBLISHER for d in decisions)
    moving = [d.status.motion for d in decisions].index("halted")
    assert all(d.command for d in decisions[:moving]) and not any(d.command for d in decisions[moving + 1 :])
    assert server.tick_without_observation(1e3).status.code is StatusCode.OTHER_PUBLISHER
    server.set_other_publisher(None)
    assert _drive(server)[-1].status.code is StatusCode.RUNNING
    server.disable()
    _drive(server, 8)
    server.set_other_publisher("Another node publishes '/twist'.")
    assert _drive(server)[-1].status.code is StatusCode.DISABLED, "in shadow another one may drive"
    server.close()


FAULTS = ("stale", "future", "not finite", "no view", "silence", "a stream", "emergency stop", "halt", "held")


@pytest.mark.parametrize("fault", FAULTS)
def test_no_zero_commands_while_another_publisher_drives(tmp_path: Path, fault: str) -> None:
    """A fault of the observations is reported first, but the other publisher still commands the arm."""
    server = _server(tmp_path, resume="enable" if fault == "held" else "auto")
    _driving(server)
    server.set_other_publisher("Another node publishes '/twist'.")
    _drive(server, 10)
    _send_no_command(server, fault)
    server.close()


@pytest.mark.parametrize("again", [False, True], ids=["enabled at the start", "enabled again"])
@pytest.mark.parametrize("fault", [*FAULTS[:-1], "first of all silence"])
def test_no_zero_commands_before_the_policy_has_driven(tmp_path: Path, fault: str, again: bool) -> None:
    """Another policy may drive the arm then, and zeros would halt it."""
    server = _server(tmp_path)
    server.set_instruction(INSTRUCTIONS[0])
    if again:
        _driving(server)
        server.disable()
        _drive(server, 10)
        server.enable()
    if fault == "first of all silence":
        assert not any(server.tick_without_observation(at, monotonic=at).command for at in (9e4, 9.5e4, 9.9e4))
    else:
        _send_no_command(server, fault)
    server.close()


def _send_no_command(server: PolicyServer, fault: str) -> None:
    if fault == "emergency stop":
        server.set_emergency_stop(True)
    if fault == "halt":
        server.halt("a test")
    found = []
    for at, seen in enumerate(observations(CONTRACT, 10, seed=5)):
        now = 1e5 + at * CONTRACT.period
        stamp = {"stale": now - 1.0, "future": now + 1.0}.get(fault, now)
        observation = dataclasses.replace(seen, stamp=stamp)
        if fault == "not finite":
            values = {name: np.full_like(group, np.nan) for name, group in seen.proprioception.items()}
            observation = dataclasses.replace(observation, proprioception=values)
        if fault == "no view":
            observation = dataclasses.replace(observation, images={})
        if fault == "silence":
            found.append(server.tick_without_observation(now, monotonic=now))
        else:
            of_streams = Fault(StatusCode.UNSYNCHRONISED, "Two streams are apart.") if fault == "a stream" else None
            found.append(server.step(observation, now, monotonic=now, fault=of_streams))
    assert not any(decision.command for decision in found), [decision.status.code for decision in found]
    assert not any(decision.status.code is StatusCode.RUNNING for decision in found)


# --- who else publishes the commands --------------------------------------------------------------------------------


def test_other_publisher_warns_then_halts_until_it_is_gone() -> None:
    others = OtherPublishers()
    assert others.fault is None and others.warning is None
    others.set_publishers("/twist", ["/a", "/b"])
    assert others.fault is None and "'/twist' (/a, /b)" in str(others.warning)
    others.add_command("/twist", 10.0)
    assert "'/twist' (/a, /b)" in str(others.fault) and others.warning is None
    others.set_publishers("/twist", ["/b"])
    others.release_quiet(10.0 + QUIET)
    assert others.fault is not None, "it has only just said something"
    others.release_quiet(10.1 + QUIET)
    assert others.fault is None and others.warning is not None
    others.add_command("/twist", 20.0)
    others.set_publishers("/gripper_command", [])
    assert others.fault is not None, "another topic is another matter"
    others.set_publishers("/twist", [])
    assert others.fault is None and others.warning is None


def test_a_command_counts_before_its_publisher_is_known() -> None:
    others = OtherPublishers()
    others.add_command("/gripper_command", 1.0)
    assert "'/gripper_command'" in str(others.fault)
