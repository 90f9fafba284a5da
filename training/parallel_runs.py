"""Several runs at once, each in a process of its own with one thread, watched from here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2distill_policy.cluster import Launcher, LocalLauncher, Process, why_lost
from m2distill_policy.config import to_dict
from m2distill_policy.errors import DivergedError, TrainingError
from m2distill_policy.progress import ProgressBar
from training.lifelong.records import RunRecord, read_record
from training.lifelong.run import LifelongRun
from training.lifelong.strategies import import_options
from training.run_config import RunConfig, first_difference


@dataclass(frozen=True)
class Job:
    """A run to make or to go on with. arguments: of ``m2distill train``, without ``--out`` and ``--resume``.

    config: what they amount to; data: the demonstrations' folder. A folder that holds a run under another
    configuration, or of other demonstrations, is refused once something of that run has been trained.
    """

    name: str
    folder: Path
    arguments: tuple[str, ...]
    config: RunConfig
    data: Path

    def require_same(self) -> None:
        """:class:`TrainingError` if the folder's run was made under another configuration or of other demonstrations,
        which it would keep.

        A setting younger than the run has its default there, as it has when the run is gone on with.
        """
        if not LifelongRun.begun(self.folder):
            return
        record = read_record(RunRecord, self.folder / "run.json")
        difference = first_difference(to_dict(record.config), to_dict(self.config))
        if difference is not None:
            raise TrainingError(
                f"{self.folder} holds a run under another configuration: {difference}; choose another folder or "
                "remove that one"
            )
        if Path(record.demonstrations) != self.data.resolve():
            raise TrainingError(
                f"{self.folder} holds a run of the demonstrations in {record.demonstrations}, and {self.data} was "
                "given; choose another folder or remove that one"
            )

    @property
    def finished(self) -> bool:
        """Whether its results are there."""
        return (self.folder / "results.json").exists()

    def command(self) -> list[str]:
        """What starts it, or goes on with it."""
        base = [sys.executable, "-m", "m2distill_policy", "train", *import_options()]
        base += ["--out", str(self.folder), "--quiet"]
        return [*base, "--resume"] if LifelongRun.begun(self.folder) else [*base, *self.arguments]


def _leave(number: int, frame: object) -> None:
    """Asked to stop: leave by an exception, so that the runs are stopped too instead of going on unseen."""
    raise SystemExit(128 + number)


def run_alone(command: Sequence[str], name: str) -> None:
    """Run one process to its end, with this one's output; where this one is stopped, it is stopped too.

    Raises :class:`TrainingError` where it ends otherwise than well; it has said why.
    """
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        process = subprocess.Popen(command)
        try:
            code = process.wait()
        finally:
            _stop([process])
    finally:
        signal.signal(signal.SIGTERM, before)
    if code != 0:
        raise TrainingError(f"'{name}' ended with code {code}; see its message above, then run this again to go on")


def _stop(processes: Sequence[Process]) -> None:
    """Ask them to end, and end them."""
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(10.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10.0)


def run_jobs(jobs: Sequence[Job], at_once: int, launcher: Launcher | None = None) -> None:
    """Bring every job to its end, ``at_once`` at a time, with a bar each; what they print goes to ``<run>/log.txt``.

    launcher: where they run (default: this machine); other machines see data and runs under the same paths.

    Raises :class:`TrainingError` with the last lines of the first job that fails, :class:`DivergedError` where it is
    the settings that fail; the others are stopped and can be gone on with.
    """
    for job in jobs:
        job.require_same()
    waiting = [job for job in jobs if not job.finished]
    launcher = launcher or LocalLauncher()
    running: dict[Process, tuple[Job, ProgressBar]] = {}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                job = waiting.pop(0)
                job.folder.mkdir(parents=True, exist_ok=True)
                process = launcher.logged(job.command(), environment, job.folder / "log.txt")
                bar: ProgressBar = ProgressBar(
                    total=1000, desc=job.name, bar_format="{l_bar}{bar}| {elapsed}<{remaining} {postfix}"
                )
                running[process] = (job, bar)
            time.sleep(1.0)
            for process, (job, bar) in list(running.items()):
                share, words = progress(job.folder)
                bar.set_postfix_str(words, refresh=False)
                if bar.n == 0 and share > 0:
                    bar.initial = bar.n = round(
                        1000 * share
                    )  # done by an earlier call: says nothing of this one's speed
                bar.update(max(0, round(1000 * share) - bar.n))
                bar.refresh()
                if process.poll() is None:
                    continue
                bar.close()
                del running[process]
                if process.returncode != 0 or not job.finished:
                    kind = DivergedError if process.returncode == DivergedError.exit_code else TrainingError
                    raise kind(
                        f"run '{job.name}' ended with code {process.returncode}; its last words: "
                        + _last_words(process, job)
                    )
    finally:
        signal.signal(signal.SIGTERM, before)
        for _, bar in running.values():
            bar.close()
        _stop(list(running))


def _last_words(process: Process, job: Job) -> str:
    lost = why_lost(process)
    log = job.folder / "log.txt"
    if lost or not log.exists():
        return lost or "none"
    return " / ".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:])


def progress(folder: Path) -> tuple[float, str]:
    """How far a run is, as a share of its stages, and in words. Cheap: reads the last logged row alone."""
    if not (folder / "run.json").exists():
        return 0.0, "starting"
    count = read_record(RunRecord, folder / "run.json").config.stages
    row = _last_row(folder / "metrics.jsonl")
    stages = sum((folder / "stages" / f"stage_{k}" / "stage.json").exists() for k in range(count))
    done = float(stages) if row is None else max(stages, row["stage"] + row["step"] / row["steps"])
    words = f"stage {min(stages + 1, count)}/{count}"
    if row is not None:
        words += f", loss {row['bc']:.2f}"
        if row["stage"] < stages:
            words += ", evaluating"
    return done / count, words


def _last_row(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - 8192))
        lines = file.read().decode("utf-8", errors="replace").splitlines()
    for line in reversed(lines):
        try:
            return json.loads(line)
        except json.JSONDecodeError:
            continue  # half a line: it is being written, or the first of a cut block
    return None
