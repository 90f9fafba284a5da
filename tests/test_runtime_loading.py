"""Bundles that never answer, use all memory or crash are refused; the bundle in use and a ready one stay."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from m2distill_policy.bundle import open_bundle
from m2distill_policy.errors import BundleError
from m2distill_policy.runtime import engine as engines
from m2distill_policy.runtime import hotswap, probe
from m2distill_policy.runtime.engine import Engine
from m2distill_policy.runtime.hotswap import MOST_LOADS
from m2distill_policy.runtime.probe import AbandonedError, ProbeLimits, open_and_prove, prove
from m2distill_policy.runtime.run_timeout import LONGEST_ANSWER
from m2distill_policy.runtime.safety import Motion
from m2distill_policy.runtime.server import PolicyServer
from m2distill_policy.runtime.status import StatusCode, SwapState
from m2distill_policy.runtime.watchdog import WatchLimits
from tests.bundles import INSTRUCTIONS, observations, replace_file, toy_contract, write_toy

CONTRACT = toy_contract()
STEPS = observations(CONTRACT, 100)
WAIT = 60.0
LIMITS = ProbeLimits(timeout=20.0)
#: A reading above it makes the graph of :func:`endless_above` loop.
ABOVE = 0.9


def edit_graph(path: Path, name: str, change: Callable[[onnx.GraphProto], None]) -> Path:
    """Change one graph of a bundle in place."""
    model = onnx.load_from_string((path / name).read_bytes())
    change(model.graph)
    replace_file(path, name, model.SerializeToString())
    return path


def _constant(graph: onnx.GraphProto, name: str, value: object, kind: type[np.generic]) -> str:
    graph.initializer.append(numpy_helper.from_array(np.array(value, kind), name))
    return name


def _add_to(graph: onnx.GraphProto, output: str, nodes: list[onnx.NodeProto], extra: str) -> None:
    """Add the value ``extra``, computed by ``nodes``, to an output of the graph."""
    for node in graph.node:
        node.output[:] = [f"{output}_before" if one == output else one for one in node.output]
    graph.node.extend([*nodes, helper.make_node("Add", [f"{output}_before", extra], [output])])


def _loop(trips: str, first: str) -> onnx.NodeProto:
    """Return a loop of ``trips`` iterations that returns its first value, a number (1,)."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Sin", ["was"], ["sine"]),
            helper.make_node("Sin", ["sine"], ["now"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("was", TensorProto.FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("now", TensorProto.FLOAT, [1]),
        ],
    )
    return helper.make_node("Loop", [trips, "", first], ["looped"], body=body)


def _endless(graph: onnx.GraphProto, output: str) -> None:
    trips = _constant(graph, "trips", 2**60, np.int64)
    _add_to(graph, output, [_loop(trips, _constant(graph, "begin_with", [0.0], np.float32))], "looped")


def _endless_above(graph: onnx.GraphProto) -> None:
    reading = CONTRACT.proprioception[0].name
    nodes = [
        helper.make_node("ReduceMax", [reading], ["highest"], keepdims=0),
        helper.make_node("Greater", ["highest", _constant(graph, "above", ABOVE, np.float32)], ["is_above"]),
        helper.make_node("Cast", ["is_above"], ["is_above_int"], to=TensorProto.INT64),
        helper.make_node("Mul", ["is_above_int", _constant(graph, "trips", 2**60, np.int64)], ["turns"]),
        _loop("turns", _constant(graph, "begin_with", [0.0], np.float32)),
    ]
    _add_to(graph, "logits", nodes, "looped")


def _allocate(graph: onnx.GraphProto, count: int) -> None:
    nodes = [
        helper.make_node("ConstantOfShape", [_constant(graph, "how_many", [count], np.int64)], ["huge"]),
        helper.make_node("ReduceMax", ["huge"], ["largest"], keepdims=0),
    ]
    _add_to(graph, "logits", nodes, "largest")


def _slow_to_optimise(graph: onnx.GraphProto) -> None:
    """Products of constant matrices, which ONNX Runtime computes while it loads the graph."""
    shape = _constant(graph, "shape_of", [6000, 6000], np.int64)
    nodes = [helper.make_node("ConstantOfShape", [shape], ["power_0"])]
    nodes += [helper.make_node("MatMul", [f"power_{i}", "power_0"], [f"power_{i + 1}"]) for i in range(400)]
    nodes.append(helper.make_node("ReduceMax", ["power_400"], ["largest"], keepdims=0))
    _add_to(graph, "logits", nodes, "largest")


HANGING: dict[str, tuple[str, Callable[[onnx.GraphProto], None]]] = {
    "step": ("step.onnx", lambda graph: _endless(graph, "logits")),
    "instruction": ("instruction.onnx", lambda graph: _endless(graph, "film")),
    "optimising": ("step.onnx", _slow_to_optimise),
}
GREEDY: dict[str, tuple[str, Callable[[onnx.GraphProto], None]]] = {
    "4 TB": ("step.onnx", lambda graph: _allocate(graph, 10**12)),
    "6 GB": ("step.onnx", lambda graph: _allocate(graph, 1_500_000_000)),
}


def hanging(path: Path, case: str = "step", seed: int = 9) -> Path:
    """A bundle that never answers."""
    return edit_graph(write_toy(path, seed), *HANGING[case])


def endless_above(path: Path, seed: int = 8) -> Path:
    """A bundle that answers until a joint position is above :data:`ABOVE`, and then never again."""
    return edit_graph(write_toy(path, seed), "step.onnx", _endless_above)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, name in enumerate("abc"):
        write_toy(tmp_path / name, seed)
    return tmp_path


@pytest.fixture
def make(folder: Path) -> Iterator[Callable[..., PolicyServer]]:
    servers = []

    def make(path: Path, **options: object) -> PolicyServer:
        merged = {"sampling": "mode", "watch": WatchLimits.lockstep(), "probe": LIMITS, **options}
        servers.append(PolicyServer(open_bundle(path), **merged))  # type: ignore[arg-type]
        servers[-1].set_instruction(INSTRUCTIONS[0])
        return servers[-1]

    yield make
    for server in servers:
        server.close()


def refused(server: PolicyServer, within: float = WAIT) -> str:
    deadline = time.monotonic() + within
    while server.swap.state is SwapState.LOADING and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.swap.state is SwapState.REFUSED, server.swap
    return server.swap.message


def children() -> set[int]:
    """Return the child processes of this process."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        found |= {int(pid) for pid in (task / "children").read_text().split()}
    return found


# --- proving ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", HANGING)
def test_bundle_that_never_answers_is_refused_in_time(tmp_path: Path, case: str) -> None:
    bundle = open_bundle(hanging(tmp_path / "hanging", case))
    before = children()
    begin = time.monotonic()
    with pytest.raises(BundleError, match="gave no answer within 3 s"):
        prove(bundle, ProbeLimits(timeout=3.0))
    assert time.monotonic() - begin < 6
    assert children() <= before, "the process is gone"


@pytest.mark.parametrize("case", GREEDY)
def test_bundle_that_uses_all_memory_is_refused(tmp_path: Path, case: str) -> None:
    path = edit_graph(write_toy(tmp_path / "greedy"), *GREEDY[case])
    with pytest.raises(BundleError):
        prove(open_bundle(path), ProbeLimits(timeout=WAIT, memory=2 * 2**30))


@pytest.mark.parametrize("kind", [signal.SIGSEGV, signal.SIGKILL, signal.SIGABRT])
def test_bundle_that_kills_the_probe_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: signal.Signals
) -> None:
    """As when ONNX Runtime crashes, or the kernel kills a process that uses too much memory."""
    bundle = open_bundle(write_toy(tmp_path / "good", seed=400 + kind))

    def end(process: subprocess.Popen[bytes], *_: object) -> None:
        process.send_signal(kind)
        process.wait()

    with monkeypatch.context() as patched:
        patched.setattr(probe, "_wait", end)
        with pytest.raises(BundleError, match=kind.name):
            prove(bundle, LIMITS)
    prove(bundle, LIMITS)
    with pytest.raises(BundleError):  # not even Python starts
        prove(open_bundle(write_toy(tmp_path / "other", seed=40)), ProbeLimits(timeout=WAIT, memory=20 * 2**20))


def test_bundle_that_changes_while_loading_is_refused(tmp_path: Path) -> None:
    bundle = open_bundle(write_toy(tmp_path / "good", seed=42))
    write_toy(tmp_path / "good", seed=43, overwrite=True)
    with pytest.raises(BundleError, match="changed while it was loaded"):
        prove(bundle, ProbeLimits(timeout=WAIT))


def test_bundle_is_probed_only_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = open_and_prove(write_toy(tmp_path / "good", seed=44))

    def fails(*_: object, **__: object) -> None:
        raise AssertionError("it was proved already")

    monkeypatch.setattr(probe.subprocess, "Popen", fails)
    prove(bundle, LIMITS)


def test_cancelled_probe_ends_at_once(tmp_path: Path) -> None:
    bundle = open_bundle(hanging(tmp_path / "hanging"))
    cancelled = threading.Event()
    threading.Timer(1.5, cancelled.set).start()
    begin = time.monotonic()
    with pytest.raises(AbandonedError):
        prove(bundle, ProbeLimits(timeout=WAIT), cancelled=cancelled)
    assert time.monotonic() - begin < 3


def test_no_process_can_be_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = open_bundle(write_toy(tmp_path / "good", seed=45))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nothing"))
    with pytest.raises(BundleError, match="no process could be started"):
        prove(bundle, LIMITS)


def test_the_probe_reads_nothing_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "numpy.py").write_text("raise SystemExit(3)")
    write_toy(tmp_path / "good", seed=46)
    monkeypatch.chdir(tmp_path)
    prove(open_bundle("good"), LIMITS)


# --- swapping --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", HANGING)
def test_later_swaps_work_while_a_candidate_never_answers(
    folder: Path, make: Callable[..., PolicyServer], case: str
) -> None:
    server = make(folder / "a", probe=ProbeLimits(timeout=WAIT))
    server.load(hanging(folder / "hanging", case))
    begin = time.monotonic()
    while time.monotonic() - begin < 2:
        assert server.step(STEPS[0], STEPS[0].stamp).command
        time.sleep(0.05)
    assert server.swap.state is SwapState.LOADING
    server.load(folder / "b")
    report = server.wait_for_swap(WAIT)
    assert (report.state, server.bundle.digest) == (SwapState.SWITCHED, open_bundle(folder / "b").digest)
    begin = time.monotonic()
    server.close()
    assert time.monotonic() - begin < 2


def test_a_candidate_that_never_answers_is_refused(folder: Path, make: Callable[..., PolicyServer]) -> None:
    server = make(folder / "a", probe=ProbeLimits(timeout=3.0))
    server.load(hanging(folder / "hanging"))
    assert "gave no answer within 3 s" in refused(server)
    assert server.step(STEPS[0], STEPS[0].stamp).command


def test_closing_does_not_wait_for_a_candidate(folder: Path, make: Callable[..., PolicyServer]) -> None:
    server = make(folder / "a", probe=ProbeLimits(timeout=WAIT))
    server.load(hanging(folder / "hanging"))
    time.sleep(1.0)
    begin = time.monotonic()
    server.close()
    assert time.monotonic() - begin < 1


def test_closing_does_not_wait_for_a_disk_that_hangs(
    folder: Path, make: Callable[..., PolicyServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    real = hotswap.open_bundle

    def slow(path: Path) -> object:
        if path.name == "b":
            release.wait(WAIT)
        return real(path)

    monkeypatch.setattr(hotswap, "open_bundle", slow)
    server = make(folder / "a")
    server.load(folder / "b")
    server.load(folder / "c")
    assert server.wait_for_swap(WAIT).state is SwapState.SWITCHED
    begin = time.monotonic()
    server.close()
    assert time.monotonic() - begin < 4
    release.set()
    time.sleep(0.5)
    assert server.bundle.digest == open_bundle(folder / "c").digest


def test_loading_from_a_hanging_disk_is_refused(
    folder: Path, make: Callable[..., PolicyServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    monkeypatch.setattr(hotswap, "open_bundle", lambda path: release.wait(WAIT))
    server = make(folder / "a")
    server._policy.swap._timeout = 0.3
    server.load(folder / "b")
    assert "was not loaded within 0.3 s" in refused(server, 3.0)
    release.set()
    time.sleep(0.2)
    assert server.swap.state is SwapState.REFUSED


def test_a_candidate_that_stops_answering_while_it_catches_up(folder: Path, make: Callable[..., PolicyServer]) -> None:
    server = make(folder / "a")
    high = observations(CONTRACT, 3, seed=5)
    for observation in high:
        observation.proprioception[CONTRACT.proprioception[0].name][:] = 1.5
        server.step(observation, observation.stamp)
    server.load(endless_above(folder / "sometimes"))
    begin = time.monotonic()
    assert "gave no answer" in refused(server)
    assert time.monotonic() - begin < LONGEST_ANSWER + 5
    assert server.tick_without_observation(high[-1].stamp).bundle == open_bundle(folder / "a").identifier


def test_a_policy_that_stops_answering_while_it_drives(folder: Path, make: Callable[..., PolicyServer]) -> None:
    server = make(endless_above(folder / "sometimes"))
    first, second = observations(CONTRACT, 2, seed=5)
    group = CONTRACT.proprioception[0].name
    first.proprioception[group][:] = 0.0
    second.proprioception[group][:] = 1.5
    assert server.step(first, first.stamp).status.code is StatusCode.RUNNING
    begin = time.monotonic()
    decision = server.step(second, second.stamp)
    assert time.monotonic() - begin < LONGEST_ANSWER + 1
    assert decision.status.code is StatusCode.ENGINE_FAILED
    # One that answers again is not cut off by what happened before.
    third = observations(CONTRACT, 3, seed=5)[2]
    third.proprioception[group][:] = 0.0
    assert server.step(third, third.stamp).sample is not None


def test_a_policy_that_answers_too_slowly_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answers are complete, but each takes longer than allowed."""

    def slow(graph: onnx.GraphProto) -> None:
        trips = _constant(graph, "trips", 400_000, np.int64)
        _add_to(graph, "logits", [_loop(trips, _constant(graph, "begin_with", [0.0], np.float32))], "looped")

    bundle = open_bundle(edit_graph(write_toy(folder / "slow"), "step.onnx", slow))
    monkeypatch.setattr(engines, "LONGEST_ANSWER", 0.05)
    with pytest.raises(BundleError, match=r"no answer within 0\.05 s"):
        Engine(bundle)


@pytest.mark.parametrize(("rate", "seconds"), [(100.0, 0.5), (20.0, 0.5), (10.0, 1.0), (1.0, LONGEST_ANSWER)])
def test_in_real_time_an_answer_may_take_ten_periods(rate: float, seconds: float) -> None:
    assert WatchLimits().longest_answer(1 / rate) == pytest.approx(seconds)
    assert WatchLimits.lockstep().longest_answer(1 / rate) == LONGEST_ANSWER


def test_in_real_time_an_overdue_answer_is_aborted_sooner(folder: Path, make: Callable[..., PolicyServer]) -> None:
    """For the bundle at the start, and after a swap."""
    group = CONTRACT.proprioception[0].name
    server = make(endless_above(folder / "sometimes"), watch=WatchLimits())
    for number in range(2):
        first, second = observations(CONTRACT, 2, seed=5 + number, start=10.0 * number)
        first.proprioception[group][:] = 0.0
        second.proprioception[group][:] = 1.5
        server.step(first, first.stamp)
        begin = time.monotonic()
        assert server.step(second, second.stamp).status.code is StatusCode.ENGINE_FAILED
        assert time.monotonic() - begin < 1.5
        if number == 0:
            server.reset()
            server.load(endless_above(folder / "next", seed=9))
            assert server.wait_for_swap(WAIT).state in (SwapState.READY, SwapState.SWITCHED)


def test_answers_of_another_shape_are_an_engine_error(folder: Path) -> None:
    """The shape depends on the input, so the blank observation at loading is answered well."""

    def none_above(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            node.output[:] = ["logits_before" if one == "logits" else one for one in node.output]
        reading = CONTRACT.proprioception[0].name
        graph.node.extend([
            helper.make_node("ReduceMax", [reading], ["highest"], keepdims=0),
            helper.make_node("Less", ["highest", _constant(graph, "above", ABOVE, np.float32)], ["is_low"]),
            helper.make_node("Reshape", ["is_low", _constant(graph, "one_axis", [1], np.int64)], ["which"]),
            helper.make_node("Compress", ["logits_before", "which"], ["logits"], axis=0),
        ])  # fmt: skip

    server = PolicyServer(
        open_bundle(edit_graph(write_toy(folder / "odd"), "step.onnx", none_above)), watch=WatchLimits.lockstep()
    )
    server.set_instruction(INSTRUCTIONS[0])
    observation = observations(CONTRACT, 1)[0]
    observation.proprioception[CONTRACT.proprioception[0].name][:] = 1.5
    assert server.step(observation, observation.stamp).status.code is StatusCode.ENGINE_FAILED


# --- a refusal changes nothing ---------------------------------------------------------------------------------------


def _tamper(path: Path) -> None:
    data = bytearray((path / "step.onnx").read_bytes())
    data[50] ^= 1
    (path / "step.onnx").write_bytes(data)


BAD: dict[str, Callable[[Path], object]] = {
    "tampered": lambda path: _tamper(write_toy(path, 5)),
    "nowhere": lambda path: None,
    "another contract": lambda path: write_toy(path, 5, contract=toy_contract(48)),
    "another instruction": lambda path: write_toy(path, 5, instructions=("sing a song",)),
    "no numbers": lambda path: write_toy(path, 5, bias_nan=True),
    "other graph": lambda path: write_toy(path, 5, graph_contract=toy_contract(48)),
    "never answers": lambda path: hanging(path),
}


@pytest.mark.parametrize("case", BAD)
def test_refused_load_keeps_the_ready_candidate(folder: Path, make: Callable[..., PolicyServer], case: str) -> None:
    server = make(folder / "a", swap_when="idle", probe=ProbeLimits(timeout=4.0))
    a, b = (open_bundle(folder / name).identifier for name in "ab")
    server.step(STEPS[0], STEPS[0].stamp)
    server.load(folder / "b")
    assert server.wait_for_swap(WAIT).state is SwapState.READY
    BAD[case](folder / "bad")
    server.load(folder / "bad")
    report = server.wait_for_swap(WAIT)
    assert report.state is SwapState.REFUSED and b in report.message, "the report says what still waits"
    assert server.swap_pending
    decision = server.step(STEPS[1], STEPS[1].stamp)
    assert (decision.bundle, decision.command, decision.status.swap) == (a, True, report)
    server.halt("somebody came near")
    for step in STEPS[2:12]:
        server.step(step, step.stamp)
    assert server.motion is Motion.HALTED
    # In lockstep too it is waited for.
    assert server.wait_for_swap(WAIT).state is SwapState.SWITCHED
    assert (server.bundle.identifier, server.swap.bundle) == (b, b)
    assert not server.swap_pending


def test_refused_rollback_keeps_the_ready_candidate(
    folder: Path, make: Callable[..., PolicyServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_toy(folder / "one", 3, instructions=INSTRUCTIONS[:1])
    server = make(folder / "one")
    server.load(folder / "a")
    assert server.wait_for_swap(WAIT).state is SwapState.SWITCHED
    server.set_instruction(INSTRUCTIONS[1])
    server._policy._swap_when = "idle"
    server.step(STEPS[0], STEPS[0].stamp)
    server.load(folder / "b")
    assert server.wait_for_swap(WAIT).state is SwapState.READY
    server.rollback()  # to the one that does not know the present instruction
    assert server.wait_for_swap(WAIT).state is SwapState.REFUSED
    server.reset("a new episode", is_stationary=True)
    assert server.wait_for_swap(WAIT).state is SwapState.SWITCHED
    assert server.bundle.digest == open_bundle(folder / "b").digest


def test_refused_load_keeps_the_load_in_progress(
    folder: Path, make: Callable[..., PolicyServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    real = hotswap.open_bundle

    def slow(path: Path) -> object:
        if path.name == "b":
            assert release.wait(WAIT)
        return real(path)

    monkeypatch.setattr(hotswap, "open_bundle", slow)
    server = make(folder / "a")
    server.load(folder / "b")
    server.load(folder / "nowhere")
    refused(server)
    release.set()
    deadline = time.monotonic() + WAIT
    while server.swap.state is not SwapState.SWITCHED and time.monotonic() < deadline:
        server.tick_without_observation(0.0)
        time.sleep(0.01)
    assert server.bundle.digest == open_bundle(folder / "b").digest


def test_earlier_request_never_replaces_a_later_one(
    folder: Path, make: Callable[..., PolicyServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    real = hotswap.open_bundle

    def slow(path: Path) -> object:
        if path.name == "b":
            assert release.wait(WAIT)
        return real(path)

    monkeypatch.setattr(hotswap, "open_bundle", slow)
    server = make(folder / "a")
    server.load(folder / "b")
    server.load(folder / "c")
    report = server.wait_for_swap(WAIT)
    release.set()
    for step in STEPS[:40]:
        server.step(step, step.stamp)
        time.sleep(0.02)
    assert server.bundle.digest == open_bundle(folder / "c").digest
    assert server.swap == report


def test_network_in_use_survives_cancelled_requests(folder: Path, make: Callable[..., PolicyServer]) -> None:
    """The event that cancels a request must not abort runs of a network that is in use."""
    server = make(folder / "a")
    for step, name in zip(STEPS, ("b", "c", "nowhere", "b"), strict=False):
        server.load(folder / name)
        server.wait_for_swap(WAIT)
        assert server.step(step, step.stamp).sample is not None
    server.rollback()
    assert server.wait_for_swap(WAIT).state is SwapState.SWITCHED
    server.close()
    time.sleep(0.3)
    assert server.step(STEPS[9], STEPS[9].stamp).sample is not None


def test_too_many_loads_at_a_time_are_refused(
    folder: Path, make: Callable[..., PolicyServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    real = hotswap.open_bundle

    def slow(path: Path) -> object:
        assert release.wait(WAIT)
        return real(path)

    monkeypatch.setattr(hotswap, "open_bundle", slow)
    server = make(folder / "a")
    before = threading.active_count()
    for _ in range(MOST_LOADS):
        server.load(folder / "b")
    for _ in range(20):
        server.load(folder / "b")
        assert server.swap.state is SwapState.REFUSED
    assert threading.active_count() <= before + 2 * MOST_LOADS
    release.set()
    deadline = time.monotonic() + WAIT
    while server.swap.state is not SwapState.SWITCHED and time.monotonic() < deadline:
        server.tick_without_observation(0.0)
        time.sleep(0.01)
    assert server.bundle.digest == open_bundle(folder / "b").digest


def test_refusal_reasons_are_shortened(folder: Path, make: Callable[..., PolicyServer]) -> None:
    server = make(folder / "a")
    for place in ("x" * 10**6, str(folder / ("y" * 200_000)), "nul\0", "a/" * 50_000):
        server.load(place)
        assert len(refused(server)) < 2000


# --- the whole process -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["step", "optimising"])
def test_sigterm_ends_a_node_that_loads_a_hanging_bundle(folder: Path, case: str) -> None:
    watched = folder / "watched"
    watched.mkdir()
    code = "import sys; from m2distill_policy.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "serve", str(folder / "a"), "--watch", str(watched), "--domain", "87"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        lines = []
        while "serving bundle" not in (line := process.stdout.readline()):
            lines.append(line)
            assert line, lines
        shutil.move(hanging(folder / "hanging", case), watched / "hanging")
        time.sleep(3.0)
        begin = time.monotonic()
        process.send_signal(signal.SIGTERM)
        output = process.communicate(timeout=30)[0]
        assert time.monotonic() - begin < 5
        assert process.returncode == 0, output
    # Nothing is left behind either.
    time.sleep(0.5)
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes()
        except OSError:
            continue
        assert not (b"runtime.probe" in words and os.fsencode(watched) in words)


def test_node_does_not_start_with_a_hanging_bundle(folder: Path) -> None:
    with pytest.raises(BundleError, match="gave no answer"):
        open_and_prove(hanging(folder / "hanging"), ProbeLimits(timeout=3.0))
    # As the node itself is loaded: its own network may not be cut off by the guard of another.
    assert Engine(open_and_prove(folder / "a")).film > 0
