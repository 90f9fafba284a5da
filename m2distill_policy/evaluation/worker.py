"""A rollout worker process: it reads one JSON line per rollout from stdin and answers with one JSON line.

:class:`m2distill_policy.evaluation.rollouts.RolloutPool` starts it. It uses one thread. It keeps its environment
and its policy for the next rollout.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from m2distill_policy.bundle import Bundle, open_bundle
from m2distill_policy.errors import M2DistillError, SimulationError
from m2distill_policy.evaluation.video import VIDEO_SIZE, VideoWriter
from m2distill_policy.runtime.server import PolicyServer
from m2distill_policy.runtime.status import StatusCode
from m2distill_policy.runtime.watchdog import WatchLimits
from m2distill_policy.sim.disturbances import Disturbance, DisturbedEnv
from m2distill_policy.sim.env import SimEnv, Task


class FatalError(Exception):
    """The rollout and all similar ones cannot run: the environment cannot be made, or the bundle does not fit it."""


class RolloutWorker:
    """Worker that runs rollouts in the environments of one module of suites.

    Args:
        suites: Name of the module, see :class:`m2distill_policy.evaluation.rollouts.RolloutPool`.
    """

    def __init__(self, suites: str) -> None:
        self._suites = importlib.import_module(suites)
        self._env: SimEnv | None = None
        self._env_key: tuple[Any, ...] = ()
        self._server: PolicyServer | None = None
        self._server_key: tuple[Any, ...] = ()

    def run(self, job: dict[str, Any]) -> dict[str, Any]:
        """Run one rollout.

        Args:
            job: The rollout, as :class:`m2distill_policy.evaluation.rollouts.RolloutPool` sends it.

        Returns:
            The fields of :class:`m2distill_policy.evaluation.results.RolloutResult` that the job does not contain.
            ``error`` contains the message if the rollout crashed.

        Raises:
            FatalError: Neither this rollout nor similar ones can run.
        """
        begin = time.monotonic()
        done: dict[str, Any] = {"success": None, "steps": 0, "achieved": (), "lifted": (), "wrong": (), "error": None}
        server = self._policy(job)
        tasks: dict[int, Task] = {t.index: t for t in self._suites.suite_tasks(job["suite"])}
        env = self._open_env(tasks[job["task_index"]], server.bundle, job["visuals"])
        disturbed = DisturbedEnv(env, [Disturbance(*d) for d in job["disturbances"]]) if job["disturbances"] else None
        try:
            self._roll(disturbed or env, server, job, list(tasks.values()), done)
        except Exception as error:  # a crash is not a failure of the policy, and must not end the other rollouts
            done["success"] = None
            done["error"] = str(error) if isinstance(error, M2DistillError) else f"{type(error).__name__}: {error}"
            self._close_env()
        finally:
            if disturbed is not None:
                disturbed.restore()
        done["seconds"] = round(time.monotonic() - begin, 3)
        return done

    def _roll(
        self,
        env: SimEnv | DisturbedEnv,
        server: PolicyServer,
        job: dict[str, Any],
        tasks: list[Task],
        done: dict[str, Any],
    ) -> None:
        instruction: str = job["instruction"]
        instructed_task = next((t for t in tasks if t.instruction == instruction), None)
        other_task = instructed_task if instructed_task != env.task else None
        video = VideoWriter(Path(job["video"]), env.contract.rate_hz) if job["video"] else None
        with contextlib.ExitStack() as unfinished:
            if video:
                unfinished.callback(video.discard)
            observation = env.reset(job["state_seed"])
            server.set_instruction(instruction)
            server.reset("a new rollout", seed=job["seed"], episode=job["episode"], is_stationary=True)
            success = False
            for _ in range(min(job["horizon"] or env.task.horizon, env.task.horizon)):
                if video:
                    video.add(env.render(env.contract.camera_names[0], VIDEO_SIZE, VIDEO_SIZE))
                decision = server.step(observation, observation.stamp)
                if decision.status.code is not StatusCode.RUNNING:
                    raise SimulationError(f"the policy halted at step {done['steps']}: {decision.status.message}")
                observation = env.step(decision.action)
                done["steps"] += 1
                success = env.success()
                # If the instruction is that of another task, the rollout ends when that task is done. After that, the
                # policy is in states that no demonstration shows, and its motion says nothing about the instruction.
                if success or (other_task is not None and other_task.name in env.achieved()):
                    break
            done["achieved"], done["lifted"] = env.achieved(), env.lifted()
            if instructed_task is not None and instructed_task.targets:
                done["wrong"] = tuple(name for name in done["lifted"] if name not in instructed_task.targets)
            else:
                expected = instructed_task.name if instructed_task is not None else ""
                done["wrong"] = tuple(name for name in done["achieved"] if name != expected)
            done["success"] = bool(success)
            if video:
                video.add(env.render(env.contract.camera_names[0], VIDEO_SIZE, VIDEO_SIZE))
                video.close()
            unfinished.pop_all()

    def _policy(self, job: dict[str, Any]) -> PolicyServer:
        key = (job["bundle"], job["sampling"], job["temperature"])
        if self._server is None or key != self._server_key:
            try:
                bundle = open_bundle(job["path"])
                if bundle.identifier != job["bundle"]:
                    raise FatalError(
                        f"bundle '{job['path']}' was replaced during the evaluation; run the evaluation again"
                    )
                self._server = PolicyServer(
                    bundle, sampling=job["sampling"], temperature=job["temperature"], watch=WatchLimits.lockstep()
                )
            except M2DistillError as error:
                raise FatalError(str(error)) from error
            self._server_key = key
        return self._server

    def _open_env(self, task: Task, bundle: Bundle, visuals: str) -> SimEnv:
        size = bundle.contract.cameras[0].height
        key = (task.suite, task.index, size, visuals)
        if self._env is None or key != self._env_key:
            self._close_env()
            try:
                self._env = self._suites.make_sim_env(task, size=size, visuals=visuals)
            except M2DistillError as error:
                raise FatalError(str(error)) from error
            self._env_key = key
        try:
            bundle.contract.require_same(
                self._env.contract,
                f"bundle {bundle.identifier}",
                f"the environment of '{task.name}'",
                # An environment has no text encoder. It has no fitted response, which comes from demonstrations.
                ignore=("text", "action.response"),
            )
        except M2DistillError as error:
            raise FatalError(str(error)) from error
        return self._env

    def _close_env(self) -> None:
        env, self._env = self._env, None
        if env is not None:
            env.close()


def main(suites: str) -> int:
    """Run the rollouts that stdin requests until stdin ends. suites: Name of the module with the suites."""
    # Output of libraries must not mix with the answers, so stdout is redirected to stderr.
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    # Ctrl-C also reaches this process. It is ignored here: to end this process, the parent closes its stdin.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def answer(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message).encode() + b"\n")

    import cv2

    cv2.setNumThreads(1)
    worker = RolloutWorker(suites)
    with contextlib.suppress(BrokenPipeError):  # the parent was killed during a rollout
        answer({"ready": True})
        for line in sys.stdin.buffer:
            job = json.loads(line)
            try:
                message = {"number": job["number"], "done": worker.run(job)}
            except FatalError as error:
                message = {"number": job["number"], "fatal": str(error)}
            except Exception as error:  # an unexpected error while the policy or the environment was made
                message = {"number": job["number"], "fatal": f"{type(error).__name__}: {error}"}
            answer(message)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
