"""Rollouts and runs spread over a Ray cluster: a real one, on this machine."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from m2distill_policy.cli import main
from m2distill_policy.cluster import LOCAL, LocalLauncher, Piped, Process, RayLauncher, why_lost
from m2distill_policy.errors import ConfigError, SimulationError, TrainingError
from m2distill_policy.evaluation.results import RolloutResult, make_cells
from m2distill_policy.evaluation.rollouts import RolloutPool
from tests.bundles import write_toy
from training.parallel_runs import Job, run_jobs
from training.run_config import RunConfig

ray = pytest.importorskip("ray", reason="Ray is not installed (requirements/ray.txt)")

SUITE = "tests.toy_suite"
CELLS = make_cells("toy", [0, 1], 4)


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayLauncher]:
    yield RayLauncher(LOCAL)
    ray.shutdown()


def plain(results: list[RolloutResult]) -> list[RolloutResult]:
    return [dataclasses.replace(r, seconds=0.0) for r in results]


def test_rollouts_on_the_cluster_are_those_of_this_machine(cluster: RayLauncher, tmp_path: Path) -> None:
    bundle = write_toy(tmp_path / "bundle")
    with RolloutPool(1, suites=SUITE) as here:
        wanted = here.evaluate(bundle, CELLS)
    with RolloutPool(2, suites=SUITE, launcher=cluster) as there:
        assert plain(there.evaluate(bundle, CELLS)) == plain(wanted)


def test_a_worker_that_dies_there_is_an_error_and_is_replaced(cluster: RayLauncher, tmp_path: Path) -> None:
    bundle = write_toy(tmp_path / "bundle")
    # The cluster's machines have their own environment; only what is set for the process goes along.
    with RolloutPool(1, suites=SUITE, launcher=_With(cluster, TOY_TROUBLE="die:1")) as pool:
        results = pool.evaluate(bundle, CELLS[:1])
    assert [r.error for r in results] == [None, "the worker of this rollout died with exit code 9", None, None]


class _With:
    """A launcher that sets variables of the environment."""

    def __init__(self, cluster: RayLauncher, **variables: str) -> None:
        self._cluster, self._variables = cluster, variables

    def piped(self, command: Sequence[str], environment: Mapping[str, str]) -> Piped:
        return self._cluster.piped(command, {**environment, **self._variables})

    def logged(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> Process:
        return self._cluster.logged(command, {**environment, **self._variables}, log)


class _Words(Job):
    """A run that is a line of Python."""

    def command(self) -> list[str]:
        return [sys.executable, "-c", *self.arguments]


def test_runs_on_the_cluster_end_or_say_why_not(cluster: RayLauncher, tmp_path: Path) -> None:
    good = "import json, sys; json.dump({}, open(sys.argv[1], 'w'))"
    first = _Words("first", tmp_path / "a", (good, str(tmp_path / "a" / "results.json")), RunConfig(), tmp_path)
    second = _Words("second", tmp_path / "b", (good, str(tmp_path / "b" / "results.json")), RunConfig(), tmp_path)
    run_jobs([first, second], 2, cluster)
    assert first.finished and second.finished
    bad = _Words("bad", tmp_path / "c", ("import sys; sys.exit('no more data')",), RunConfig(), tmp_path)
    with pytest.raises(TrainingError, match="run 'bad' ended with code 1; its last output: no more data"):
        run_jobs([bad], 1, cluster)


def test_more_processes_than_cores_wait_and_a_folder_that_is_not_there_is_named(
    cluster: RayLauncher, tmp_path: Path
) -> None:
    cores = int(ray.cluster_resources()["CPU"])
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    running = [cluster.logged(sleep, os.environ, tmp_path / "log.txt") for _ in range(cores)]
    deadline = time.monotonic() + 60
    while any(process.waiting for process in running) and time.monotonic() < deadline:  # type: ignore[attr-defined]
        time.sleep(0.1)
    late = cluster.logged(sleep, os.environ, tmp_path / "log.txt")
    assert late.poll() is None and late.waiting  # type: ignore[attr-defined]
    for process in (late, *running):
        process.kill()
        assert process.wait(30.0) != 0
    lost = cluster.logged(sleep, os.environ, tmp_path / "nowhere" / "log.txt")
    assert lost.wait(60.0) != 0
    assert "must see the work's folders under the same paths" in why_lost(lost)


def test_a_worker_that_cannot_begin_there_says_why(cluster: RayLauncher, tmp_path: Path) -> None:
    class Elsewhere(LocalLauncher):
        def piped(self, command: Sequence[str], environment: Mapping[str, str]) -> Piped:
            return cluster.piped(["/no/such/python", *command[1:]], environment)

    with (
        RolloutPool(1, suites=SUITE, launcher=Elsewhere()) as pool,
        pytest.raises(SimulationError, match=r"\(.*No such file or directory: '/no/such/python'"),
    ):
        pool.evaluate(write_toy(tmp_path / "bundle"), CELLS[:1])


def test_a_cluster_that_does_not_answer_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", str(write_toy(tmp_path / "bundle")), "--suite", "tabletop", "--tasks", "0"]
    ray.shutdown()
    assert main([*words, "--out", str(tmp_path / "out"), "--ray", "auto"]) == 2
    assert "no Ray cluster answers at 'auto'" in capfd.readouterr().err
    with pytest.raises(ConfigError, match="no Ray cluster answers"):
        RayLauncher("auto")
