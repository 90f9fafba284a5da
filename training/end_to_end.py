"""The pipeline end to end, which ``make demo`` runs. The steps run commands of ``m2distill`` and print them."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from m2distill_policy.bundle import open_bundle
from m2distill_policy.config import load_config
from m2distill_policy.demonstrations import DemonstrationFile, demonstration_path
from m2distill_policy.errors import M2DistillError, TransportError
from m2distill_policy.observation import Observation
from m2distill_policy.runtime.server import PolicyServer
from m2distill_policy.sim.suites import suite_task
from m2distill_policy.storage import write_atomic
from training.lifelong.checkpoint import read_json, write_json
from training.lifelong.records import RunResults, read_record
from training.parallel_runs import Job, run_alone, run_jobs
from training.regression_gate import publish
from training.report.page import build_page, text_table
from training.report.rows import loss_rows
from training.run_config import RunConfig

#: Number of rollouts of the simulated robot in real time. The policy is replaced during the second rollout.
SERVED_ROLLOUTS = 4


class Demo:
    """The demo: its folder and its steps. A second call in the same folder repeats only serving and the report."""

    def __init__(self, folder: Path, config: Path, overrides: tuple[str, ...]) -> None:
        # Both strategies train in parallel, so each gets one process for its rollouts.
        self.folder, self.config_file, self.overrides = folder, config, ("evaluation.workers=1", *overrides)
        self.config = load_config(RunConfig, config, self.overrides)
        self.demonstrations = folder / "demonstrations"

    def run(self) -> int:
        """Run all steps.

        Returns:
            The exit code 0. A step that fails raises an error.
        """
        begin = time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.collect()
        self.learn()
        self.serve()
        self.record_videos()
        page = self.report()
        print(f"\nthis call took {(time.monotonic() - begin) / 60:.1f} minutes; report: {page}")
        return 0

    # -- steps ----------------------------------------------------------------------------------------------------

    def collect(self) -> None:
        """Collect demonstrations of every task."""
        self._title("1. demonstrations from scripted experts in robosuite")
        self._call(
            "demos", "--suite", self.config.suite, "--tasks", ",".join(map(str, self.config.tasks)),
            "--episodes", str(self.config.episodes), "--size", str(self.config.image_size),
            "--out", str(self.demonstrations),
        )  # fmt: skip

    def learn(self) -> None:
        """Train both strategies on all tasks. They share the first stage, because it has no old task."""
        self._title("2. lifelong learning: sequential fine-tuning and m2distill, every stage exported and evaluated")
        first = self._job("sequential")
        second = self._job("m2distill", "--first-stage-from", first.folder)
        for job in (first, second):
            job.require_same()
        if not (first.folder / "evaluation" / "stage_0.json").exists():
            command = [word for word in first.command() if word != "--quiet"]
            run_alone([*command, "--stages", "1"], "train")
        run_jobs([first, second], at_once=2)

    def _job(self, strategy: str, *more: object) -> Job:
        overrides = (*self.overrides, f"strategy={strategy}")
        return Job(
            strategy,
            self.folder / strategy,
            ("--config", str(self.config_file), "--data", str(self.demonstrations), *map(str, more), *overrides),
            load_config(RunConfig, self.config_file, overrides),
            self.demonstrations,
        )

    def serve(self) -> None:
        """Serve the policy in one process to a simulated robot in another, and replace it while the robot moves."""
        self._title("3. serving over DDS: two processes, and the policy is replaced while the simulated robot moves")
        out = self.folder / "served.json"
        bundles = self.folder / "m2distill" / "bundles"
        first, last = bundles / "stage_0", bundles / f"stage_{len(self.config.tasks) - 1}"
        served = {
            "lockstep": self._lockstep(last),
            "swap": self._swap(first, last),
            "latency_of_a_policy_step": self._latency(last),
        }
        write_json(out, served)
        print(json.dumps(served, indent=2))

    def _lockstep(self, bundle: Path) -> dict[str, Any]:
        """Run the last task over DDS in lockstep, and require the same successes as in the evaluation without DDS."""
        task = self.config.tasks[-1]
        rollouts = min(5, self.config.evaluation.rollouts)
        result = self._served(
            bundle, ["--lockstep"], ["--lockstep", "--task", str(task), "--rollouts", str(rollouts)], "lockstep"
        )
        log = self.folder / "m2distill" / "evaluation" / f"stage_{len(self.config.tasks) - 1}.jsonl"
        rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        success = {r["episode"]: r["success"] for r in rows if r["task_index"] == task and not r["error"]}
        inside = [success[episode] for episode in range(rollouts)]
        if result["success"] != inside:
            raise M2DistillError(
                f"in lockstep over DDS the success vector is {result['success']}, in-process {inside}; they must agree"
            )
        return {"task": result["name"], "success_over_dds": result["success"], "success_in_process": inside}

    def _swap(self, first: Path, last: Path) -> dict[str, Any]:
        """Run the first task in real time, and replace the first stage's bundle by the last stage's in a rollout."""
        watched = self.folder / "watched"
        shutil.rmtree(watched, ignore_errors=True)
        watched.mkdir()

        def publish_last() -> None:
            publish(last, watched, last.name)

        result = self._served(
            first,
            ["--watch", str(watched), "--swap-when", "now"],
            ["--real-time", "--task", str(self.config.tasks[0]), "--rollouts", str(SERVED_ROLLOUTS)],
            "swap",
            # Loading and warm-up take 1 to 2 s and a rollout at least 3 s: the swap happens during the second rollout.
            after_first_rollout=publish_last,
        )
        answered = [r["bundles"] for r in result["rollouts"]]
        if len({bundle for row in answered for bundle in row}) < 2:
            raise M2DistillError(f"the bundle was not replaced: the bundles in use were {answered}")
        return {
            "task": result["name"],
            "success": result["success"],
            "bundles_that_answered": answered,
            "swapped_in_mid_rollout": any(len(row) > 1 for row in answered),
            "cycles_without_a_command": sum(r["steps_without_command"] for r in result["rollouts"]),
        }

    def _latency(self, bundle: Path) -> dict[str, float]:
        """Measure the time from an observation to an action in ms, with one thread, on recorded frames."""
        task = suite_task(self.config.suite, self.config.tasks[0])
        episode = DemonstrationFile(demonstration_path(self.demonstrations, task.name)).episode(0)
        server = PolicyServer(open_bundle(bundle), sampling=self.config.evaluation.sampling)
        server.set_instruction(task.instruction)
        seconds = []
        for t in range(300):
            row, now = t % len(episode), t * server.contract.period
            observation = Observation(
                {name: frames[row] for name, frames in episode.images.items()},
                {name: values[row] for name, values in episode.proprioception.items()},
                now,
            )
            begin = time.perf_counter()
            server.step(observation, now)
            seconds.append(time.perf_counter() - begin)
        server.close()
        median, late = np.percentile(seconds[20:], [50, 99])
        return {"median_ms": round(1e3 * float(median), 2), "p99_ms": round(1e3 * float(late), 2)}

    def _served(
        self,
        bundle: Path,
        serve: list[str],
        sim: list[str],
        name: str,
        after_first_rollout: Callable[[], None] | None = None,
    ) -> dict[str, Any]:
        """Run the policy node and the simulated robot until the robot's process ends; return the robot's result."""
        domain = str(random.SystemRandom().randrange(1, 100))  # two demos on one machine must not share a domain
        out = self.folder / f"served_{name}.json"
        out.unlink(missing_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        node = subprocess.Popen(
            self._command(
                "serve", str(bundle), "--domain", domain, "--sampling", self.config.evaluation.sampling, *serve
            ),
            env=environment,
            text=True,
        )
        try:
            robot = subprocess.Popen(
                self._command(
                    "sim", "--suite", self.config.suite, "--bundle", str(bundle), "--domain", domain,
                    "--seed", str(self.config.seed), "--visuals", self.config.evaluation.visuals,
                    "--out", str(out), *sim,
                ),
                env=environment, text=True, stdout=subprocess.PIPE,
            )  # fmt: skip
            threading.Thread(target=self._echo, args=(robot, after_first_rollout), daemon=True).start()
            try:
                code = robot.wait(600)
            except subprocess.TimeoutExpired as error:
                raise TransportError(
                    "the simulated robot did not end within 10 minutes; see its output above"
                ) from error
            finally:
                robot.kill()
            if code != 0:
                raise TransportError(f"the simulated robot ended with code {code}; see its message above")
        finally:
            node.send_signal(signal.SIGTERM)
            try:
                node.wait(20)
            except subprocess.TimeoutExpired:
                node.kill()
        result: dict[str, Any] = read_json(out)
        return result

    def record_videos(self) -> None:
        """Record a rollout of every task with the last bundle, and the camera views in both visual profiles."""
        self._title("4. videos")
        count = len(self.config.tasks)
        videos = self.folder / "videos"
        if not (videos / "summary.json").exists():
            self._call(
                "evaluate", str(self.folder / "m2distill" / "bundles" / f"stage_{count - 1}"),
                "--suite", self.config.suite, "--tasks", ",".join(map(str, self.config.tasks)),
                "--rollouts", "1", "--videos", "1", "--sampling", self.config.evaluation.sampling,
                "--seed", str(self.config.seed), "--visuals", self.config.evaluation.visuals, "--out", str(videos),
            )  # fmt: skip
        if not (self.folder / "views" / "stock.png").exists():
            self._call_module("training.report.camera_views", self.config.suite, str(self.folder / "views"))

    def report(self) -> Path:
        """Print the table and write the page; return its path."""
        self._title("5. report")
        folders = [self.folder / "sequential", self.folder / "m2distill"]
        results = [read_record(RunResults, folder / "results.json") for folder in folders]
        page = self.folder / "report.html"
        html = build_page(
            results,
            title="Learning tasks one after another",
            videos=[
                (path, path.stem.rsplit("-", 2)[0].replace("_", " "))
                for path in sorted((self.folder / "videos").rglob("*.mp4"))
            ],
            images=[(self.folder / "views" / f"{n}.png", f"visual profile '{n}'") for n in ("fast", "stock")],
            served=read_json(self.folder / "served.json"),
            losses={r.label: loss_rows(f) for r, f in zip(results, folders, strict=True)},
        )
        write_atomic(page, html.encode())
        print(text_table(results))
        return page

    # -- helpers --------------------------------------------------------------------------------------------------

    @staticmethod
    def _echo(robot: subprocess.Popen[str], after_first_rollout: Callable[[], None] | None) -> None:
        """Print the output of ``m2distill sim``, which has one line for each rollout."""
        assert robot.stdout is not None
        for line in robot.stdout:
            print(line, end="", flush=True)
            if after_first_rollout is not None:
                after_first_rollout()
                after_first_rollout = None

    @staticmethod
    def _title(text: str) -> None:
        print(f"\n== {text}", flush=True)

    @staticmethod
    def _command(*arguments: str) -> list[str]:
        print("$ m2distill " + " ".join(arguments), flush=True)
        return [sys.executable, "-m", "m2distill_policy", *arguments]

    def _call(self, *arguments: str) -> None:
        run_alone(self._command(*arguments), arguments[0])

    def _call_module(self, module: str, *arguments: str) -> None:
        run_alone([sys.executable, "-m", module, *arguments], module)
