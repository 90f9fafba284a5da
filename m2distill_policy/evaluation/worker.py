"""One process that rolls out: reads one JSON line a rollout from stdin and answers with one JSON line.

Started by :class:`m2distill_policy.evaluation.rollouts.RolloutPool` with one thread for every numerical library. It
keeps its world and its network from one rollout to the next.
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
from m2distill_policy.evaluation.film import FILM_SIZE, FilmWriter
from m2distill_policy.runtime.server import PolicyServer
from m2distill_policy.runtime.status import StatusCode
from m2distill_policy.runtime.watchdog import WatchLimits
from m2distill_policy.sim.disturbances import Disturbance, DisturbedWorld
from m2distill_policy.sim.world import Task, World


class FatalError(Exception):
    """Nothing of the kind can be rolled out: the world cannot be made, or the bundle does not fit it."""


class RolloutWorker:
    """Makes worlds from a module with ``suite_tasks(name)`` and ``make_world(task, *, size, visuals)``."""

    def __init__(self, suites: str) -> None:
        self._suites = importlib.import_module(suites)
        self._world: World | None = None
        self._world_key: tuple[Any, ...] = ()
        self._server: PolicyServer | None = None
        self._server_key: tuple[Any, ...] = ()

    def run(self, job: dict[str, Any]) -> dict[str, Any]:
        """One rollout; returns the fields of a result that the job does not hold already.

        Raises :class:`FatalError`; whatever else goes wrong is in the field ``error``.
        """
        begin = time.monotonic()
        done: dict[str, Any] = {"success": None, "steps": 0, "achieved": (), "lifted": (), "wrong": (), "error": None}
        server = self._policy(job)
        tasks: dict[int, Task] = {t.index: t for t in self._suites.suite_tasks(job["suite"])}
        world = self._place(tasks[job["task_index"]], server.bundle, job["visuals"])
        wrong = DisturbedWorld(world, [Disturbance(*d) for d in job["disturbances"]]) if job["disturbances"] else None
        try:
            self._roll(wrong or world, server, job, list(tasks.values()), done)
        except Exception as error:  # a crashed rollout is an error, never a failure, and must not end the others
            done["success"] = None
            done["error"] = str(error) if isinstance(error, M2DistillError) else f"{type(error).__name__}: {error}"
            self._drop_world()
        finally:
            if wrong is not None:
                wrong.restore()
        done["seconds"] = round(time.monotonic() - begin, 3)
        return done

    def _roll(
        self,
        world: World | DisturbedWorld,
        server: PolicyServer,
        job: dict[str, Any],
        tasks: list[Task],
        done: dict[str, Any],
    ) -> None:
        told: str = job["told"]
        told_task = next((t for t in tasks if t.instruction == told), None)
        film = FilmWriter(Path(job["film"]), world.contract.rate_hz) if job["film"] else None
        with contextlib.ExitStack() as unfinished:
            if film:
                unfinished.callback(film.discard)
            observation = world.reset(job["state_seed"])
            server.set_instruction(told)
            server.reset("a new rollout", seed=job["seed"], episode=job["episode"], is_stationary=True)
            success = False
            for _ in range(min(job["horizon"] or world.task.horizon, world.task.horizon)):
                if film:
                    film.add(world.render(world.contract.camera_names[0], FILM_SIZE, FILM_SIZE))
                decision = server.step(observation, observation.stamp)
                if decision.status.code is not StatusCode.RUNNING:
                    raise SimulationError(f"the policy halted at step {done['steps']}: {decision.status.message}")
                observation = world.step(decision.action)
                done["steps"] += 1
                success = world.success()
                # Told another task's instruction, the rollout ends when that is done: what it does afterwards,
                # outside anything it was shown, says nothing about listening.
                if success or (
                    told_task is not None and told_task != world.task and told_task.name in world.achieved()
                ):
                    break
            done["achieved"], done["lifted"] = world.achieved(), world.lifted()
            if told_task is not None and told_task.targets:
                done["wrong"] = tuple(name for name in done["lifted"] if name not in told_task.targets)
            else:
                meant = told_task.name if told_task is not None else ""
                done["wrong"] = tuple(name for name in done["achieved"] if name != meant)
            done["success"] = bool(success)
            if film:
                film.add(world.render(world.contract.camera_names[0], FILM_SIZE, FILM_SIZE))
                film.close()
            unfinished.pop_all()

    def _policy(self, job: dict[str, Any]) -> PolicyServer:
        key = (job["bundle"], job["sampling"], job["temperature"])
        if self._server is None or key != self._server_key:
            try:
                bundle = open_bundle(job["path"])
                if bundle.identifier != job["bundle"]:
                    raise FatalError(f"bundle '{job['path']}' was replaced while it was evaluated; evaluate it again")
                self._server = PolicyServer(
                    bundle, sampling=job["sampling"], temperature=job["temperature"], watch=WatchLimits.lockstep()
                )
            except M2DistillError as error:
                raise FatalError(str(error)) from error
            self._server_key = key
        return self._server

    def _place(self, task: Task, bundle: Bundle, visuals: str) -> World:
        size = bundle.contract.cameras[0].height
        key = (task.suite, task.index, size, visuals)
        if self._world is None or key != self._world_key:
            self._drop_world()
            try:
                self._world = self._suites.make_world(task, size=size, visuals=visuals)
            except M2DistillError as error:
                raise FatalError(str(error)) from error
            self._world_key = key
        try:
            bundle.contract.require_same(
                self._world.contract,
                f"bundle {bundle.identifier}",
                f"the world of '{task.name}'",
                # A world has no text encoder, and its response is measured from demonstrations, not known beforehand.
                ignore=("text", "action.response"),
            )
        except M2DistillError as error:
            raise FatalError(str(error)) from error
        return self._world

    def _drop_world(self) -> None:
        world, self._world = self._world, None
        if world is not None:
            world.close()


def main(suites: str) -> int:
    """Answer jobs until stdin ends."""
    # Whatever a library prints must not end up among the answers.
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    # Ctrl-C reaches the whole group: the parent decides, and closes our stdin.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def answer(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message).encode() + b"\n")

    import cv2

    cv2.setNumThreads(1)
    worker = RolloutWorker(suites)
    with contextlib.suppress(BrokenPipeError):  # the parent was killed in the middle of a rollout: nobody asks any more
        answer({"ready": True})
        for line in sys.stdin.buffer:
            job = json.loads(line)
            try:
                message = {"number": job["number"], "done": worker.run(job)}
            except FatalError as error:
                message = {"number": job["number"], "fatal": str(error)}
            except Exception as error:  # making a network or a world failed in a way nobody foresaw
                message = {"number": job["number"], "fatal": f"{type(error).__name__}: {error}"}
            answer(message)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
