"""Run a policy in a simulated environment: ``python -m examples.run_policy [BUNDLE]``.

Without a bundle, it runs the pretrained policy that ships with the package, once for each of its tasks.
"""

from __future__ import annotations

import sys
from statistics import median

import m2distill_policy as m2


def main(bundle: str | None = None, steps: int = 150) -> None:
    """Run one episode of each of the first three tasks, and print success and latency."""
    policy = m2.load(bundle)
    print("instructions:", ", ".join(policy.instructions))
    size = policy.contract.cameras[0].height
    for task in range(3):
        env = m2.make_env("tabletop", task=task, size=size)
        observation, info = env.reset(seed=100)
        policy.reset(info["instruction"])
        latencies = []
        for _ in range(steps):
            action = policy.act(observation)
            latencies.append(action.latency)
            observation, _, terminated, truncated, info = env.step(action.values)
            if terminated or truncated:
                break
        env.close()
        result = "success" if info["is_success"] else "failure"
        print(f"{info['instruction']}: {result} after {len(latencies)} steps, {1e3 * median(latencies):.1f} ms a step")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
