"""The window is right-aligned, slides when full, and is cleared when it must be."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from m2distill_policy.errors import UnknownInstructionError
from m2distill_policy.runtime.decision import Decision
from m2distill_policy.runtime.server import PolicyServer
from m2distill_policy.runtime.status import StatusCode
from m2distill_policy.runtime.watchdog import WatchLimits
from m2distill_policy.runtime.window import RawHistory, TokenWindow
from tests.bundles import INSTRUCTIONS, observations, toy_bundle, toy_contract

CONTRACT = toy_contract()
STEPS = observations(CONTRACT, 40)


@pytest.fixture
def server(tmp_path: Path) -> PolicyServer:
    made = PolicyServer(toy_bundle(tmp_path / "bundle"), sampling="mode", watch=WatchLimits.lockstep())
    made.set_instruction(INSTRUCTIONS[0])
    return made


def drive(server: PolicyServer, first: int, count: int) -> list[Decision]:
    return [server.step(o, o.stamp) for o in STEPS[first : first + count]]


def sizes(decisions: list[Decision]) -> list[int]:
    return [d.status.window for d in decisions]


def test_token_window_is_right_aligned_and_slides() -> None:
    window = TokenWindow(history=4, tokens=2, embed=3)
    buffer, count = window.past_tokens, window.past_count
    for i in range(1, 6):
        window.push(np.full((1, 2, 3), i, dtype=np.float32))
        kept = [max(0, n) for n in range(i - 2, i + 1)]
        assert window.past_tokens[0, :, 0, 0].tolist() == kept
        assert window.count == min(i, 3)
    assert window.past_tokens is buffer and window.past_count is count, "handed to the engine once, never replaced"
    window.clear()
    assert window.count == 0 and not buffer.any()


def test_history_of_one_step_keeps_nothing() -> None:
    window = TokenWindow(history=1, tokens=2, embed=3)
    window.push(np.ones((1, 2, 3), dtype=np.float32))
    assert window.count == 0 and window.past_tokens.shape == (1, 0, 2, 3)


def test_raw_history_keeps_copies_of_the_newest_steps() -> None:
    history = RawHistory(3, 0.05)
    for o in STEPS[:5]:
        history.push(o)
    assert [s.number for s in history] == [3, 4, 5]
    kept = [s.observation for s in history][-1]
    name = CONTRACT.camera_names[0]
    assert np.array_equal(kept.images[name], STEPS[4].images[name]) and kept.images[name] is not STEPS[4].images[name]
    assert kept.images[name].dtype == np.uint8
    history.clear("test")
    assert len(history) == 0 and history.newest == 0 and history.generation == 1
    history.push(STEPS[0])
    assert history.newest == 6, "numbers go on, so that a swap never mistakes one window for another"


def test_full_window_depends_only_on_the_last_steps(server: PolicyServer) -> None:
    last = drive(server, 0, 25)[-1]
    assert sizes([last]) == [10]
    server.reset("test")
    again = drive(server, 15, 10)[-1]
    assert np.array_equal(last.action, again.action)
    assert last.mixture is not None and again.mixture is not None
    assert np.array_equal(last.mixture.means, again.mixture.means)


def test_window_grows_to_the_history(server: PolicyServer) -> None:
    assert sizes(drive(server, 0, 13)) == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10, 10, 10]


def test_new_instruction_clears(server: PolicyServer) -> None:
    drive(server, 0, 5)
    server.set_instruction(INSTRUCTIONS[1])
    decision = drive(server, 5, 1)[0]
    assert decision.status.window == 1
    assert decision.status.window_cleared == "a new instruction"
    assert decision.status.instruction == INSTRUCTIONS[1]


def test_same_instruction_again_does_not_clear(server: PolicyServer) -> None:
    drive(server, 0, 5)
    server.set_instruction(INSTRUCTIONS[0])
    assert sizes(drive(server, 5, 1)) == [6]


def test_refused_instruction_clears_and_halts(server: PolicyServer) -> None:
    drive(server, 0, 5)
    with pytest.raises(UnknownInstructionError):
        server.set_instruction("sing")
    assert server.window.count == 0
    decisions = drive(server, 5, 6)
    assert {d.status.code for d in decisions} == {StatusCode.UNKNOWN_INSTRUCTION}
    assert "It knows: 'lift the red box'" in decisions[0].status.message
    assert [d.status.motion for d in decisions] == ["halting"] * 4 + ["halted"] * 2
    server.set_instruction(INSTRUCTIONS[0])
    assert sizes(drive(server, 11, 2)) == [1, 2]


def test_enable_clears(server: PolicyServer) -> None:
    drive(server, 0, 3)
    server.disable()
    assert sizes(drive(server, 3, 3)) == [4, 5, 6], "shadow mode keeps its window"
    server.enable()
    decision = drive(server, 6, 1)[0]
    assert (decision.status.window, decision.status.window_cleared) == (1, "enable")


def test_reset_and_activate_clear(server: PolicyServer) -> None:
    for reason in ("reset", "activate"):
        drive(server, 0, 3)
        server.reset(reason)
        decision = drive(server, 0, 1)[0]
        assert (decision.status.window, decision.status.window_cleared) == (1, reason)
        server.reset()


def test_resume_after_a_halt_clears(server: PolicyServer) -> None:
    drive(server, 0, 5)
    name = CONTRACT.proprioception_names[0]
    sick = dataclasses.replace(
        STEPS[5], proprioception={**STEPS[5].proprioception, name: np.full(7, np.nan, dtype=np.float32)}
    )
    assert server.step(sick, sick.stamp).status.code is StatusCode.BAD_OBSERVATION
    decision = drive(server, 6, 1)[0]
    assert (decision.status.window, decision.status.window_cleared) == (1, "resume after a halt")
    server.halt("the task was cancelled")
    assert {d.status.code for d in drive(server, 7, 8)} == {StatusCode.HALT_REQUESTED}
    server.enable()
    assert sizes(drive(server, 15, 1)) == [1]


@pytest.mark.parametrize(("periods", "window"), [(1.0, 5), (1.5, 5), (1.51, 1), (3.0, 1)])
def test_gap_of_over_one_and_a_half_periods_clears(server: PolicyServer, periods: float, window: int) -> None:
    last = drive(server, 0, 4)[-1]
    assert last.stamp is not None
    late = dataclasses.replace(STEPS[4], stamp=last.stamp + periods * CONTRACT.period)
    decision = server.step(late, late.stamp)
    assert decision.status.code is StatusCode.RUNNING
    assert decision.status.window == window
    if window == 1:
        assert decision.status.window_cleared == "a gap between two stamps"


def test_tokens_of_two_instructions_never_mix(server: PolicyServer) -> None:
    """Answers after a change of instruction equal those of a fresh server."""
    drive(server, 0, 7)
    server.set_instruction(INSTRUCTIONS[1])
    changed = drive(server, 7, 5)
    fresh = PolicyServer(server.bundle, sampling="mode", watch=WatchLimits.lockstep())
    fresh.set_instruction(INSTRUCTIONS[1])
    for a, b in zip(changed, drive(fresh, 7, 5), strict=True):
        assert np.array_equal(a.action, b.action)


def test_caller_may_reuse_its_buffers(server: PolicyServer) -> None:
    """The server answers the same if every observation comes in the same arrays."""
    apart = [d.action for d in drive(server, 0, 12)]
    server.reset("test")
    buffers = {name: frame.copy() for name, frame in STEPS[0].images.items()}
    together = []
    for o in STEPS[:12]:
        for name, frame in o.images.items():
            buffers[name][:] = frame
        together.append(server.step(dataclasses.replace(o, images=buffers), o.stamp).action)
    assert np.array_equal(apart, together)
