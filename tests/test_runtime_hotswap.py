"""Networks are switched between two cycles without losing any, and a refused bundle leaves the old one in use."""

from __future__ import annotations

import dataclasses
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from m2distill_policy.bundle import open_bundle
from m2distill_policy.contract import VelocityResponse
from m2distill_policy.errors import BundleError
from m2distill_policy.runtime import hotswap
from m2distill_policy.runtime.decision import Decision
from m2distill_policy.runtime.engine import Engine
from m2distill_policy.runtime.folder_watcher import FolderWatcher
from m2distill_policy.runtime.hotswap import SwapError
from m2distill_policy.runtime.safety import Motion
from m2distill_policy.runtime.server import PolicyServer
from m2distill_policy.runtime.status import StatusCode, SwapState
from m2distill_policy.runtime.watchdog import WatchLimits
from tests.bundles import INSTRUCTIONS, observations, toy_contract, write_toy

CONTRACT = toy_contract()
STEPS = observations(CONTRACT, 200)
WAIT = 30.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_toy(tmp_path / "a", 0)
    write_toy(tmp_path / "b", 1)
    return tmp_path


def make(path: Path, **options: object) -> PolicyServer:
    server = PolicyServer(open_bundle(path), **{"sampling": "mode", "watch": WatchLimits.lockstep(), **options})  # type: ignore[arg-type]
    server.set_instruction(INSTRUCTIONS[0])
    return server


def drive(server: PolicyServer, first: int, count: int) -> list[Decision]:
    return [server.step(o, o.stamp) for o in STEPS[first : first + count]]


@pytest.mark.parametrize("before", [0, 1, 5, 10, 23])
def test_new_network_gets_the_window_of_the_same_steps(folder: Path, before: int) -> None:
    """After a switch, tokens and answers equal those of the new network fed with the same steps from the start."""
    server = make(folder / "a")
    drive(server, 0, before)
    server.load(folder / "b")
    report = server.wait_for_swap(WAIT)
    b = open_bundle(folder / "b")
    assert (report.state, report.bundle) == (SwapState.SWITCHED, b.identifier)
    assert report.message == f"Bundle {b.identifier} is in use now."
    fresh = make(folder / "b")
    drive(fresh, max(0, before - 10), min(before, 10))
    assert np.array_equal(server.window.past_tokens, fresh.window.past_tokens)
    assert server.window.count == fresh.window.count == min(before, 9)
    assert server.window.past_tokens.any() == (before > 0)
    for ours, theirs in zip(drive(server, before, 12), drive(fresh, before, 12), strict=True):
        assert ours.bundle == b.identifier
        assert np.array_equal(ours.action, theirs.action)
        assert ours.mixture is not None and theirs.mixture is not None
        assert np.array_equal(ours.mixture.logits, theirs.mixture.logits)
    server.close()


def test_no_cycle_is_lost_while_a_bundle_is_prepared(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server answers every cycle while a (slow) bundle loads, then switches and keeps the window."""
    release = threading.Event()
    real = hotswap.open_bundle

    def slow(path: Path) -> object:
        assert release.wait(WAIT)
        return real(path)

    monkeypatch.setattr(hotswap, "open_bundle", slow)
    server = make(folder / "a")
    a, b = (open_bundle(folder / name).identifier for name in "ab")
    drive(server, 0, 20)
    server.load(folder / "b")
    decisions = drive(server, 20, 20)
    assert {d.bundle for d in decisions} == {a} and {d.status.swap.state for d in decisions} == {SwapState.LOADING}
    release.set()
    deadline = time.monotonic() + WAIT
    index = 40
    while decisions[-1].bundle == a and time.monotonic() < deadline and index < len(STEPS):
        decisions += drive(server, index, 1)
        index += 1
        time.sleep(0.005)
    decisions += drive(server, index, 3)
    bundles = [d.bundle for d in decisions]
    assert bundles == sorted(bundles, key=[a, b].index) and bundles[-1] == b, "one switch, no way back"
    assert all(d.command and d.status.code is StatusCode.RUNNING and d.status.window == 10 for d in decisions)
    server.close()


def test_many_swaps_in_real_time_answer_every_cycle(folder: Path) -> None:
    server = make(folder / "a")
    names = {open_bundle(folder / n).identifier: n for n in "ab"}
    answered: list[str] = []
    swaps = 0
    for step in STEPS:
        if server.swap.state in (SwapState.NONE, SwapState.SWITCHED):
            swaps += server.swap.state is SwapState.SWITCHED
            server.load(folder / ("b" if names[server.bundle.identifier] == "a" else "a"))
        decision = server.step(step, step.stamp)
        assert decision.command and decision.status.code is StatusCode.RUNNING
        answered.append(decision.bundle)
        time.sleep(0.004)
    assert swaps >= 5
    assert len(answered) == len(STEPS) and set(answered) == set(names)
    server.close()


def test_rollback(folder: Path) -> None:
    server = make(folder / "a")
    with pytest.raises(SwapError, match="there is no previous bundle"):
        server.rollback()
    a, b = (open_bundle(folder / name).identifier for name in "ab")
    drive(server, 0, 5)
    server.load(folder / "b")
    server.wait_for_swap(WAIT)
    shutil.rmtree(folder / "a")  # not read again: it is still in memory
    drive(server, 5, 5)
    server.rollback()
    assert server.wait_for_swap(WAIT).state is SwapState.SWITCHED
    assert server.bundle.identifier == a
    assert drive(server, 10, 1)[0].status.window == 10 or server.window.count == 9
    server.rollback()
    server.wait_for_swap(WAIT)
    assert server.bundle.identifier == b
    server.close()


def test_instruction_changed_while_loading(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    real = hotswap.open_bundle

    def slow(path: Path) -> object:
        assert release.wait(WAIT)
        return real(path)

    monkeypatch.setattr(hotswap, "open_bundle", slow)
    server = make(folder / "a")
    drive(server, 0, 5)
    server.load(folder / "b")
    server.set_instruction(INSTRUCTIONS[1])
    drive(server, 5, 3)
    release.set()
    server.wait_for_swap(WAIT)
    fresh = make(folder / "b")
    fresh.set_instruction(INSTRUCTIONS[1])
    drive(fresh, 5, 3)
    assert np.array_equal(server.window.past_tokens, fresh.window.past_tokens)
    assert np.array_equal(drive(server, 8, 1)[0].action, drive(fresh, 8, 1)[0].action)
    server.close()


def test_candidate_never_changes_the_window_in_use(folder: Path) -> None:
    """After the switch, the background thread no longer changes it: answers equal those of a fresh server."""
    for _ in range(10):
        server, fresh = make(folder / "a"), make(folder / "b")
        drive(server, 0, 10)
        drive(fresh, 0, 10)
        server.load(folder / "b")
        server.wait_for_swap(WAIT)
        for ours, theirs in zip(drive(server, 10, 20), drive(fresh, 10, 20), strict=True):
            assert np.array_equal(ours.action, theirs.action)
        server.close()


def test_swap_when_idle_waits_for_a_halted_arm(folder: Path) -> None:
    server = make(folder / "a", swap_when="idle")
    a, b = (open_bundle(folder / name).identifier for name in "ab")
    drive(server, 0, 5)
    server.load(folder / "b")
    assert server.wait_for_swap(WAIT).state is SwapState.READY
    assert {d.bundle for d in drive(server, 5, 20)} == {a}
    server.reset("the window is emptied, and the arm goes on")
    assert server.wait_for_swap(WAIT).state is SwapState.READY
    server.reset("a new episode", is_stationary=True)
    assert server.wait_for_swap(WAIT).state is SwapState.SWITCHED
    assert drive(server, 0, 1)[0].bundle == b
    server.load(folder / "a")
    assert server.wait_for_swap(WAIT).state is SwapState.READY
    server.halt("somebody came near")
    drive(server, 1, 10)
    assert server.motion is Motion.HALTED
    assert server.wait_for_swap(WAIT).bundle == a
    server.close()


def test_before_any_instruction(folder: Path) -> None:
    server = PolicyServer(open_bundle(folder / "a"))
    server.load(folder / "b")
    assert server.wait_for_swap(WAIT).state is SwapState.SWITCHED
    server.set_instruction(INSTRUCTIONS[0])
    assert server.step(STEPS[0], STEPS[0].stamp).bundle == open_bundle(folder / "b").identifier


# --- refusals --------------------------------------------------------------------------------------------------------


def _tampered(folder: Path) -> None:
    data = bytearray((folder / "b" / "step.onnx").read_bytes())
    data[50] ^= 1
    (folder / "b" / "step.onnx").write_bytes(data)


REFUSALS = {
    "tampered": (_tampered, "step.onnx' was changed or damaged"),
    "missing": (lambda f: (f / "b" / "step.onnx").unlink(), "lacks the file 'step.onnx'"),
    "gone": (lambda f: shutil.rmtree(f / "b"), "there is no bundle at"),
    "rate": (
        lambda f: write_toy(f / "b", 1, contract=dataclasses.replace(CONTRACT, rate_hz=10.0), overwrite=True),
        "do not fit together: rate_hz: 20.0 != 10.0",
    ),
    "views": (lambda f: write_toy(f / "b", 1, contract=toy_contract(48), overwrite=True), "height: 32 != 48"),
    "instruction": (
        lambda f: write_toy(f / "b", 1, instructions=("sing a song",), overwrite=True),
        "does not know the instruction 'lift the red box'. It knows: 'sing a song'.",
    ),
    "graph": (
        lambda f: write_toy(f / "b", 1, graph_contract=toy_contract(48), overwrite=True),
        "input 'agentview_rgb' of",
    ),
    "answers": (lambda f: write_toy(f / "b", 1, bias_nan=True, overwrite=True), "does not answer a blank observation"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refused_bundle_leaves_the_old_one_in_use(folder: Path, name: str) -> None:
    damage, text = REFUSALS[name]
    server = make(folder / "a")
    a = server.bundle.identifier
    drive(server, 0, 5)
    damage(folder)
    server.load(folder / "b")
    report = server.wait_for_swap(WAIT)
    assert report.state is SwapState.REFUSED
    assert report.message.startswith("Bundle 'b' was refused: ") and text in report.message
    decision = drive(server, 5, 1)[0]
    assert (decision.bundle, decision.status.window, decision.command) == (a, 6, True)
    assert decision.status.swap == report, "the status says so"
    # A later good one is taken.
    write_toy(folder / "c", 2)
    server.load(folder / "c")
    assert server.wait_for_swap(WAIT).state is SwapState.SWITCHED
    server.close()


def test_candidate_that_does_not_know_a_new_instruction_is_refused(folder: Path) -> None:
    write_toy(folder / "one", 3, instructions=(INSTRUCTIONS[0],))
    server = make(folder / "a", swap_when="idle")
    drive(server, 0, 3)
    server.load(folder / "one")
    assert server.wait_for_swap(WAIT).state is SwapState.READY
    server.set_instruction(INSTRUCTIONS[1])
    report = server.wait_for_swap(WAIT)
    assert report.state is SwapState.REFUSED and "does not know the instruction 'lift the green box'" in report.message
    assert drive(server, 3, 1)[0].status.code is StatusCode.RUNNING
    server.close()


def test_another_velocity_response_is_allowed(folder: Path) -> None:
    response = VelocityResponse((0.0, 1.0), ((0.0, 0.24),) * 6, fitted_from=100)
    faster = dataclasses.replace(CONTRACT, action=dataclasses.replace(CONTRACT.action, response=response))
    write_toy(folder / "c", 2, contract=faster)
    server = make(folder / "a")
    server.load(folder / "c")
    assert server.wait_for_swap(WAIT).state is SwapState.SWITCHED
    assert server.contract.action.response == response
    server.close()


def test_latest_request_wins(folder: Path) -> None:
    write_toy(folder / "c", 2)
    server = make(folder / "a")
    server.load(folder / "b")
    server.load(folder / "c")
    assert server.wait_for_swap(WAIT).bundle == open_bundle(folder / "c").identifier
    server.close()


def test_waiting_has_a_timeout(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def stuck(path: Path) -> object:
        release.wait(WAIT)
        raise BundleError("too late")

    monkeypatch.setattr(hotswap, "open_bundle", stuck)
    server = make(folder / "a")
    server.load(folder / "b")
    with pytest.raises(SwapError, match=r"was not ready within 0.05 s \(Bundle 'b' is being verified and loaded.\)"):
        server.wait_for_swap(0.05)
    release.set()
    server.close()
    assert server.swap.state is SwapState.NONE


def test_waiting_without_a_swap_returns_at_once(folder: Path) -> None:
    assert make(folder / "a").wait_for_swap(0.0).state is SwapState.NONE


def test_unexpected_error_is_a_refusal(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: object, **__: object) -> Engine:
        raise ZeroDivisionError("out of luck")

    monkeypatch.setattr(hotswap, "Engine", breaks)
    server = make(folder / "a")
    server.load(folder / "b")
    report = server.wait_for_swap(WAIT)
    assert report.message == "Bundle 'b' was refused: ZeroDivisionError: out of luck"
    assert drive(server, 0, 1)[0].command


# --- the watched folder ----------------------------------------------------------------------------------------------


def test_watcher_loads_each_renamed_bundle_once(tmp_path: Path) -> None:
    write_toy(tmp_path / "old", 0)
    found: list[Path] = []
    watcher = FolderWatcher(tmp_path, found.append)
    assert watcher.poll() is None, "what lay there at the start is left alone"
    # Half-written: hidden, by temporary name, without a manifest, or not a folder.
    shutil.copytree(tmp_path / "old", tmp_path / ".b.123.tmp")
    shutil.copytree(tmp_path / "old", tmp_path / "b.tmp")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    write_toy(tmp_path / ".." / f"{tmp_path.name}-next", 1).rename(tmp_path / "next")
    assert watcher.poll() == tmp_path / "next"
    assert watcher.poll() is None and found == [tmp_path / "next"]
    # The newest of several; the others are not news any more.
    write_toy(tmp_path / "c", 2)
    time.sleep(0.02)
    write_toy(tmp_path / "d", 3)
    assert watcher.poll() == tmp_path / "d"
    assert watcher.poll() is None


def test_watcher_never_tries_a_refused_bundle_again(folder: Path, tmp_path: Path) -> None:
    watched = tmp_path / "watched"
    watched.mkdir()
    server = make(folder / "a")
    watcher = FolderWatcher(watched, server.load, interval=0.02)
    watcher.start()
    _tampered(folder)
    (folder / "b").rename(watched / "b")
    deadline = time.monotonic() + WAIT
    while server.swap.state is not SwapState.REFUSED and time.monotonic() < deadline:
        time.sleep(0.01)
    report = server.swap
    assert report.state is SwapState.REFUSED
    time.sleep(0.2)
    (watched / "b").rename(watched / "renamed")
    time.sleep(0.2)
    assert server.swap is report, "no second try, under no other name either"
    write_toy(watched / "good", 7)
    while server.swap.state is not SwapState.SWITCHED and time.monotonic() < deadline:
        drive(server, 0, 0)
        server.tick_without_observation(0.0)
        time.sleep(0.01)
    assert server.bundle.identifier == open_bundle(watched / "good").identifier
    watcher.stop()
    server.close()


def test_watcher_tries_a_bundle_again_when_it_is_complete(tmp_path: Path) -> None:
    """A slow copy that starts with the manifest is refused until all files are there."""
    (tmp_path / "watched").mkdir()
    watcher = FolderWatcher(tmp_path / "watched", lambda path: None)
    whole = write_toy(tmp_path / "whole", 1)
    slow = tmp_path / "watched" / "slow"
    slow.mkdir()
    for name in ("bundle.json", *sorted(f.name for f in whole.iterdir() if f.name != "bundle.json")):
        shutil.copy(whole / name, slow / name)
        assert watcher.poll() == slow
    assert watcher.poll() is None
    open_bundle(slow)


def test_watcher_reports_a_missing_folder_and_continues(tmp_path: Path) -> None:
    watched = tmp_path / "watched"
    with pytest.raises(BundleError, match="is not a folder, so it cannot be watched for bundles; create it first"):
        FolderWatcher(watched, lambda path: None)
    watched.mkdir()
    found: list[Path] = []
    watcher = FolderWatcher(watched, found.append, interval=0.02)
    watcher.start()
    watched.rmdir()
    deadline = time.monotonic() + WAIT
    while not watcher.problem and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "cannot be watched" in watcher.problem
    watched.mkdir()
    write_toy(watched / "a", 0)
    while not found and time.monotonic() < deadline:
        time.sleep(0.01)
    watcher.stop()
    assert found == [watched / "a"] and watcher.problem == ""
