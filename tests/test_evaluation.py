"""Rollouts: the same whatever the number of workers, resumable, and a crash is an error, never a failure."""

from __future__ import annotations

import dataclasses
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from m2distill_policy.bundle import open_bundle
from m2distill_policy.cluster import Launcher
from m2distill_policy.errors import (
    BundleError,
    ConfigError,
    SimulationError,
    StorageError,
    UnknownInstructionError,
)
from m2distill_policy.evaluation.results import (
    ROLLOUT_FORMAT,
    Cell,
    RolloutLog,
    RolloutResult,
    make_cells,
    summarise,
    table,
    wilson,
)
from m2distill_policy.evaluation.rollouts import RolloutPool
from m2distill_policy.sim.seeds import demonstration_seed, state_seed
from tests.bundles import INSTRUCTIONS, toy_contract, write_toy

ROOT = Path(__file__).resolve().parent.parent
SUITE = "tests.toy_suite"
CELLS = make_cells("toy", [0, 1], 5)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("evaluation") / "bundle")


@pytest.fixture(scope="module")
def pool() -> Iterator[RolloutPool]:
    with RolloutPool(1, suites=SUITE) as shared:
        yield shared


def plain(results: list[RolloutResult]) -> list[RolloutResult]:
    return [dataclasses.replace(r, seconds=0.0, video=None) for r in results]


def test_seeds_of_demonstrations_selection_and_reports_never_meet() -> None:
    ends = [
        (demonstration_seed(0, 0, 0), demonstration_seed(999, 99, 9999)),
        (state_seed("reported", 0, 0), state_seed("reported", 4999, 99_999)),
        (state_seed("selection", 0, 0), state_seed("selection", 4999, 99_999)),
    ]
    for (_, last), (first, _) in itertools.pairwise(ends):
        assert last < first
    assert ends[-1][1] < 2**31
    # LIBERO takes the seed modulo its 50 initial states.
    reported, selection = ({state_seed(p, 7, e) % 50 for e in range(25)} for p in ("reported", "selection"))
    assert not reported & selection
    assert len({state_seed("reported", s, e) for s in range(3) for e in range(100)}) == 300
    with pytest.raises(ConfigError, match=r"evaluation seed is 5000; .*0 to 4999"):
        state_seed("reported", 5000, 0)
    with pytest.raises(ConfigError, match="rollout number is 100000"):
        Cell("toy", 0, rollouts=1, first=100_000)
    with pytest.raises(ConfigError, match="rollouts is 0"):
        Cell("toy", 0, rollouts=0)


def test_results_do_not_depend_on_workers(bundle: Path, pool: RolloutPool) -> None:
    one = pool.evaluate(bundle, CELLS, sampling="sample")
    with RolloutPool(3, suites=SUITE) as three:
        assert plain(three.evaluate(bundle, CELLS, sampling="sample")) == plain(one)
    assert [r.task_index for r in one] == [0] * 5 + [1] * 5
    assert {r.success for r in one} == {True, False}, "the toy is made to fail now and then"
    assert all(r.error is None and r.steps for r in one)
    # A part of the cells gives the same results as the whole.
    assert plain(pool.evaluate(bundle, [Cell("toy", 1, rollouts=2, first=3)], sampling="sample")) == plain(one[8:])
    # Another seed, other states.
    assert [r.steps for r in pool.evaluate(bundle, make_cells("toy", [0, 1], 5, seed=1))] != [r.steps for r in one]


def test_log_grows_and_resume_skips_what_is_done(bundle: Path, pool: RolloutPool, tmp_path: Path) -> None:
    log = tmp_path / "out" / "rollouts.jsonl"
    seen: list[tuple[int, int]] = []
    first = pool.evaluate(bundle, CELLS[:1], log=log, progress=lambda r, done, total: seen.append((done, total)))
    assert seen == [(i, 5) for i in range(1, 6)]
    assert len(log.read_text().splitlines()) == 5
    with log.open("a") as file:
        file.write('{"suite": "to')  # killed in the middle of a line
    seen.clear()
    both = pool.evaluate(bundle, CELLS, log=log, progress=lambda r, done, total: seen.append((done, total)))
    assert seen == [(i, 10) for i in range(6, 11)], "only the second cell is rolled out"
    assert both[:5] == first
    assert len(log.read_text().splitlines()) == 10
    assert RolloutLog(log).results == both
    # Another way of sampling is another rollout.
    pool.evaluate(bundle, CELLS[:1], log=log, sampling="mode")
    assert len(log.read_text().splitlines()) == 15


def test_damaged_log_is_named(tmp_path: Path) -> None:
    log = tmp_path / "rollouts.jsonl"
    log.write_text('{"suite": 1}\n')
    with pytest.raises(SimulationError, match=r"rollouts.jsonl', line 1 .* move or delete the file"):
        RolloutLog(log)


def test_a_log_of_an_earlier_format_is_refused(tmp_path: Path, bundle: Path, pool: RolloutPool) -> None:
    log = tmp_path / "rollouts.jsonl"
    pool.evaluate(bundle, make_cells("toy", [0], 1), log=log)
    line = json.loads(log.read_text())
    assert line["format"] == ROLLOUT_FORMAT
    for version in (1, ROLLOUT_FORMAT + 1):
        log.write_text(json.dumps({**line, "format": version}) + "\n")
        with pytest.raises(SimulationError, match=f"format is {version}; .* format {ROLLOUT_FORMAT}"):
            RolloutLog(log)
    del line["format"]
    line["told"] = line.pop("instruction")
    log.write_text(json.dumps(line) + "\n")
    with pytest.raises(SimulationError, match=f"format is 1; .* format {ROLLOUT_FORMAT}"):
        RolloutLog(log)


def test_another_tasks_instruction(bundle: Path, pool: RolloutPool) -> None:
    results = pool.evaluate(bundle, make_cells("toy", [0], 5, instruction=INSTRUCTIONS[1]))
    assert {r.instruction for r in results} == {INSTRUCTIONS[1]}
    # The toy does its own task whatever the instruction is, so it lifts the wrong object.
    assert [r.wrong for r in results] == [("red_box",) if r.success else () for r in results]
    assert any(r.success for r in results)
    own = pool.evaluate(bundle, CELLS[:1])
    assert all(r.wrong == () for r in own)


def test_crashed_rollout_is_an_error(bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TOY_TROUBLE", "raise:2")
    log = tmp_path / "rollouts.jsonl"
    with RolloutPool(2, suites=SUITE) as broken:
        results = broken.evaluate(bundle, CELLS, log=log)
    assert [r.error for r in results] == [None, None, "ValueError: the toy broke", None, None] * 2
    assert [r.success is None for r in results] == [r.error is not None for r in results]
    summary = summarise(results)[0]
    assert (summary.rollouts, summary.errors) == (5, 1)
    good = [r for r in results[:5] if r.error is None]
    assert summary.rate == sum(bool(r.success) for r in good) / 4
    assert "1" in table([summary]).splitlines()[1].split()[-1]
    # Errors are tried again; here the cause is gone.
    monkeypatch.delenv("TOY_TROUBLE")
    with RolloutPool(1, suites=SUITE) as whole:
        assert all(r.error is None for r in whole.evaluate(bundle, CELLS, log=log))
    assert len(log.read_text().splitlines()) == 12


def test_dead_and_hanging_workers(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_TROUBLE", "die:1")
    with RolloutPool(1, suites=SUITE) as pool:
        results = pool.evaluate(bundle, CELLS[:1])
    assert results[1].error == "the worker of this rollout died with exit code 9"
    assert [r.error is None for r in results] == [True, False, True, True, True]
    monkeypatch.setenv("TOY_TROUBLE", "hang:4")
    with RolloutPool(1, suites=SUITE) as pool:
        results = pool.evaluate(bundle, CELLS[:1], timeout=2.0)
    assert results[4].error is not None and "2 s" in results[4].error


def test_a_worker_whose_parent_was_killed_ends_without_a_word(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "m2distill_policy.evaluation.worker", SUITE]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    ) as worker:
        assert worker.stdin is not None and worker.stdout is not None and worker.stderr is not None
        assert json.loads(worker.stdout.readline()) == {"ready": True}
        worker.stdout.close()
        job = {"number": 0, "path": str(tmp_path / "none"), "bundle": "", "sampling": "mode", "temperature": 1.0}
        worker.stdin.write(json.dumps(job).encode() + b"\n")
        worker.stdin.close()
        assert worker.wait(30.0) == 0
        assert worker.stderr.read() == b""


def test_what_cannot_run_at_all_is_refused(bundle: Path, pool: RolloutPool, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="there is no bundle"):
        pool.evaluate(tmp_path / "nothing", CELLS)
    with pytest.raises(UnknownInstructionError, match="did you mean 'lift the red box'"):
        pool.evaluate(bundle, make_cells("toy", [0], 1, instruction="lift the rod box"))
    with pytest.raises(ConfigError, match=r"'toy' has no task 7; .*\[0, 1\]"):
        pool.evaluate(bundle, make_cells("toy", [7], 1))
    with pytest.raises(ConfigError, match=r"\[0, 0\]"):
        make_cells("toy", [0, 0], 1)
    with pytest.raises(ConfigError, match=r"51.* 'libero_goal' .*50 initial states"):
        make_cells("libero_goal", [0], 51)
    with pytest.raises(ConfigError, match="sampling 'lownoise' is unknown"):
        pool.evaluate(bundle, CELLS, sampling="lownoise")
    with pytest.raises(ConfigError, match="video_folder"):
        pool.evaluate(bundle, CELLS, videos_per_cell=1)
    with pytest.raises(SimulationError, match="the toy's scene cannot be made"):
        pool.evaluate(bundle, CELLS, visuals="broken")
    other = write_toy(tmp_path / "other", contract=dataclasses.replace(toy_contract(), rate_hz=10.0))
    with pytest.raises(SimulationError, match=r"do not fit together: rate_hz: 10\.0 != 20\.0"):
        pool.evaluate(other, CELLS)
    with (
        RolloutPool(1, suites="tests.no_such_suite") as absent,
        pytest.raises(ModuleNotFoundError),
    ):
        absent.evaluate(bundle, CELLS)
    # And the pool still works afterwards.
    assert pool.evaluate(bundle, CELLS[:1])[0].error is None


def test_nan_from_the_policy_is_an_error_not_a_failure(pool: RolloutPool, tmp_path: Path) -> None:
    sick = write_toy(tmp_path / "sick", bias_nan=True)
    with pytest.raises(SimulationError, match="does not answer a blank observation"):
        pool.evaluate(sick, CELLS)


def test_a_shorter_horizon_is_another_rollout(bundle: Path, pool: RolloutPool, tmp_path: Path) -> None:
    log = tmp_path / "rollouts.jsonl"
    whole = pool.evaluate(bundle, CELLS, log=log)
    short = pool.evaluate(bundle, make_cells("toy", [0, 1], 5, horizon=6), log=log)
    assert all(r.steps <= 6 and r.horizon == 6 for r in short)
    for a, b in zip(whole, short, strict=True):
        assert b.success == (a.success and a.steps <= 6)
    assert len(log.read_text().splitlines()) == 20, "neither is taken for the other"
    assert [r.steps for r in pool.evaluate(bundle, make_cells("toy", [0, 1], 5, horizon=999))] == [
        r.steps for r in whole
    ]
    with pytest.raises(ConfigError, match="horizon is -1"):
        Cell("toy", 0, horizon=-1)


def test_videos(bundle: Path, pool: RolloutPool, tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg", reason="videos need requirements/sim.txt")
    log = tmp_path / "log.jsonl"
    pool.evaluate(bundle, CELLS[:1], log=log)
    results = pool.evaluate(bundle, CELLS[:1], log=log, video_folder=tmp_path / "videos", videos_per_cell=1)
    assert len(log.read_text().splitlines()) == len(results) + 1, "the rollout is repeated for its video"
    videos = [r.video for r in results]
    assert videos[0] is not None and Path(videos[0]).read_bytes()[4:8] == b"ftyp"
    assert videos[1:] == [None] * 4
    known = open_bundle(bundle).identifier[:6]
    assert [p.name[:-10] for p in (tmp_path / "videos").iterdir()] == [f"lift_the_red_box-0-0-{known}-"]
    other = write_toy(tmp_path / "other", seed=7)
    for sampling in ("low_noise", "mode"):  # videos of another bundle or another sampling do not replace it
        pool.evaluate(other, CELLS[:1], log=log, video_folder=tmp_path / "videos", videos_per_cell=1, sampling=sampling)
    assert len(list((tmp_path / "videos").iterdir())) == 3


def test_wilson() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    low, high = wilson(10, 20)
    assert low == pytest.approx(0.2993, abs=1e-4) and high == pytest.approx(0.7007, abs=1e-4)
    assert wilson(20, 20)[1] == pytest.approx(1.0)


def test_command(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import argparse

    import m2distill_policy.sim.suites as suites
    from m2distill_policy.commands import evaluate, info
    from m2distill_policy.evaluation import rollouts
    from tests import toy_suite

    class ToyPool(RolloutPool):
        def __init__(self, workers: int, launcher: Launcher) -> None:
            super().__init__(workers, suites=SUITE, launcher=launcher)

    monkeypatch.setattr(rollouts, "RolloutPool", ToyPool)
    monkeypatch.setattr(suites, "suite_tasks", toy_suite.suite_tasks)
    parser = argparse.ArgumentParser()
    evaluate.add_parser(parser.add_subparsers())
    out = tmp_path / "out"
    words = ["evaluate", str(bundle), "--suite", "toy", "--rollouts", "2", "--workers", "1", "--out", str(out)]
    args = parser.parse_args(words)
    assert args.run(args) == 0
    assert "lift_the_red_box" in capsys.readouterr().out
    summary = json.loads((out / "summary.json").read_text())
    assert [cell["rollouts"] for cell in summary["cells"]] == [2, 2]
    assert len((out / "rollouts.jsonl").read_text().splitlines()) == 4
    assert info.describe(out)[1] == ("serve", str(bundle)), "it can be read back"
    args = parser.parse_args([*words, "--tasks", "0,x"])
    with pytest.raises(ConfigError, match="--tasks is '0,x'"):
        args.run(args)


def test_a_full_disk_costs_the_rollout_being_written_alone(bundle: Path, pool: RolloutPool, tmp_path: Path) -> None:
    log = tmp_path / "rollouts.jsonl"
    results = pool.evaluate(bundle, CELLS[:1], log=log)
    book = RolloutLog(log)
    log.rename(tmp_path / "whole.jsonl")
    log.symlink_to("/dev/full")
    with pytest.raises(
        StorageError, match=r"disk is full, so .*rollouts\.jsonl cannot be written; finished work is kept"
    ):
        book.add(results[0])
    assert len(book.results) == 5, "what is not written down was not done"
