"""Measure the time of a control step: robosuite, and our environments with stock and fast rendering.

Everything runs in one process. The environments alternate every few steps, so that a busy machine slows all of them
equally. ``robosuite`` is robosuite's own Lift environment with the same robot, controller, rate and two cameras. It has
fewer objects than the suite ``tabletop``, so the comparison favours robosuite. It takes minutes. It is one session and
does not resume.

Example:
    python -m benchmarks.simulation --size 128 --out mine.json
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.output import add_out, command, make_parser, percentiles
from benchmarks.result_files import write_measurement
from m2distill_policy.progress import ProgressBar

#: A slow descent: the arm moves and touches nothing.
_ACTION = np.array([0.05, 0.0, -0.1, 0.0, 0.0, 0.0, -1.0])


def main() -> None:
    """Measure, and write the result."""
    parser = make_parser(__doc__)
    parser.add_argument("--size", type=int, default=128, help="image size in pixels (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=12, help="rounds of interleaved measurement (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, default=5, help="control steps in a round (default: %(default)s)")
    parser.add_argument("--no-robosuite", action="store_true", help="skip robosuite's own environment")
    add_out(parser)
    args = parser.parse_args()
    figures = measure(args.size, args.rounds, args.steps, with_robosuite=not args.no_robosuite)
    config = {"size": args.size, "rounds": args.rounds, "steps_a_round": args.steps, "views": 2}
    write_measurement("simulation", config, figures, args.out)


def measure(size: int, rounds: int, steps: int, *, with_robosuite: bool = True) -> dict[str, Any]:
    """Measure the milliseconds to render both views and of a control step that renders both, and their ratios."""
    from m2distill_policy.sim.env import SimEnv
    from m2distill_policy.sim.suites import make_sim_env, suite_tasks

    task = suite_tasks("tabletop")[0]
    worlds: dict[str, SimEnv] = {
        visuals: make_sim_env(task, size=size, visuals=visuals) for visuals in ("stock", "fast")
    }
    whole: dict[str, Callable[[], object]] = {}
    drawing: dict[str, Callable[[], object]] = {}
    resets: dict[str, Callable[[], object]] = {}
    for name, world in worlds.items():
        whole[name] = lambda world=world: world.step(_ACTION)  # type: ignore[misc]
        drawing[name] = lambda world=world, size=size: [  # type: ignore[misc]
            world.render(camera, size, size) for camera in world.contract.camera_names
        ]
        resets[name] = lambda world=world: world.reset(0)  # type: ignore[misc]
    if with_robosuite:
        env = _robosuite(size)
        # robosuite renders into the current context. This process has several, so robosuite's own is selected first.
        current = env.sim._render_context_offscreen.gl_ctx.make_current
        whole["robosuite"] = lambda: (current(), env.step(_ACTION))
        resets["robosuite"] = lambda: (current(), env.reset())
    for name in whole:
        resets[name]()
        whole[name]()  # the first step compiles and uploads
    times: dict[str, list[float]] = {f"{name} step": [] for name in whole}
    times |= {f"{name} drawing": [] for name in drawing}
    for _ in ProgressBar(iterable=range(rounds), unit="round"):
        for name in whole:
            resets[name]()
            times[f"{name} step"] += [_seconds(whole[name]) for _ in range(steps)]
            if name in drawing:
                times[f"{name} drawing"] += [_seconds(drawing[name]) for _ in range(steps)]
    for world in worlds.values():
        world.close()
    if with_robosuite:
        env.close()
    milliseconds = {name: percentiles(np.array(values)) for name, values in times.items()}
    median = {name: float(np.median(values)) for name, values in times.items()}
    figures: dict[str, Any] = {
        "milliseconds": milliseconds,
        "drawing_stock_over_fast": round(median["stock drawing"] / median["fast drawing"], 2),
        "step_stock_over_fast": round(median["stock step"] / median["fast step"], 2),
        "fast_steps_a_second": round(1.0 / median["fast step"], 1),
    }
    if with_robosuite:
        figures["step_robosuite_over_fast"] = round(median["robosuite step"] / median["fast step"], 2)
    return figures


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _robosuite(size: int) -> Any:
    """Make robosuite's Lift with the contract's robot, controller, rate and cameras."""
    import robosuite

    np.random.seed(0)  # noqa: NPY002 - robosuite samples from the global generator
    return robosuite.make(
        "Lift",
        robots="Panda",
        controller_configs=robosuite.load_controller_config(default_controller="OSC_POSE"),
        has_renderer=False,
        has_offscreen_renderer=True,
        use_camera_obs=True,
        camera_names=["agentview", "robot0_eye_in_hand"],
        camera_heights=size,
        camera_widths=size,
        control_freq=20,
        hard_reset=False,
        ignore_done=True,
    )


if __name__ == "__main__":
    command(main)
