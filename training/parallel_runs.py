"""Run several trainings in parallel, each in its own process with one thread, and show their progress."""

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
    """A run to train or to resume.

    Attributes:
        name: Name of the run in messages.
        folder: Folder of the run.
        arguments: Arguments of ``m2distill train``, without ``--out`` and ``--resume``.
        config: Configuration that results from ``arguments``.
        data: Folder of the demonstrations.
    """

    name: str
    folder: Path
    arguments: tuple[str, ...]
    config: RunConfig
    data: Path

    def require_same(self) -> None:
        """Refuse a folder that holds another run. A run without any training is accepted, because it is replaced.

        Raises:
            TrainingError: The folder's run has another configuration or other demonstrations.
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
        """Whether the run has results."""
        return (self.folder / "results.json").exists()

    def command(self) -> list[str]:
        """Return the command that starts or resumes the run."""
        base = [sys.executable, "-m", "m2distill_policy", "train", *import_options()]
        base += ["--out", str(self.folder), "--quiet"]
        return [*base, "--resume"] if LifelongRun.begun(self.folder) else [*base, *self.arguments]


def _leave(number: int, frame: object) -> None:
    """Raise SystemExit on a signal, so that the child processes are stopped too."""
    raise SystemExit(128 + number)


def run_alone(command: Sequence[str], name: str) -> None:
    """Run a command and wait for it.

    The command writes to the same terminal. If this process is stopped, the command is stopped too.

    Args:
        command: Program and arguments.
        name: Name of the command in messages.

    Raises:
        TrainingError: The command failed. It has printed its own message.
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
        raise TrainingError(
            f"'{name}' ended with code {code}; see its message above, then run this command again to continue"
        )


def _stop(processes: Sequence[Process]) -> None:
    """Terminate processes, and kill those that do not end within 10 s."""
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(10.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10.0)


def run_jobs(jobs: Sequence[Job], at_once: int, launcher: Launcher | None = None) -> None:
    """Finish several runs, with a progress bar each. Their output goes to ``<run>/log.txt``.

    If one fails, the others are stopped; they can be resumed.

    Args:
        jobs: The runs; finished runs are skipped.
        at_once: Number of runs at the same time.
        launcher: Starts the processes; None: on this machine. Other machines must see the demonstrations and the run
            folders under the same paths.

    Raises:
        DivergedError: The loss of a run is not finite.
        TrainingError: Another error of a run, with the last lines of its output.
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
                share, text = progress(job.folder)
                bar.set_postfix_str(text, refresh=False)
                if bar.n == 0 and share > 0:
                    # An earlier call did this part, so it must not count for the speed.
                    bar.initial = bar.n = round(1000 * share)
                bar.update(max(0, round(1000 * share) - bar.n))
                bar.refresh()
                if process.poll() is None:
                    continue
                bar.close()
                del running[process]
                if process.returncode != 0 or not job.finished:
                    kind = DivergedError if process.returncode == DivergedError.exit_code else TrainingError
                    raise kind(
                        f"run '{job.name}' ended with code {process.returncode}; its last output: "
                        + _last_output(process, job)
                    )
    finally:
        signal.signal(signal.SIGTERM, before)
        for _, bar in running.values():
            bar.close()
        _stop(list(running))


def _last_output(process: Process, job: Job) -> str:
    lost = why_lost(process)
    log = job.folder / "log.txt"
    if lost or not log.exists():
        return lost or "none"
    return " / ".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:])


def progress(folder: Path) -> tuple[float, str]:
    """Return the progress of a run: the share that is done, 0 to 1, and a text. Only the last logged row is read."""
    if not (folder / "run.json").exists():
        return 0.0, "starting"
    count = read_record(RunRecord, folder / "run.json").config.stages
    row = _last_row(folder / "metrics.jsonl")
    stages = sum((folder / "stages" / f"stage_{k}" / "stage.json").exists() for k in range(count))
    done = float(stages) if row is None else max(stages, row["stage"] + row["step"] / row["steps"])
    text = f"stage {min(stages + 1, count)}/{count}"
    if row is not None:
        text += f", loss {row['bc']:.2f}"
        if row["stage"] < stages:
            text += ", evaluating"
    return done / count, text


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
            continue  # an incomplete line: it is being written, or the block that was read begins within it
    return None
