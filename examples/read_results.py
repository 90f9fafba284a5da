"""Read the numbers of a finished run: ``python -m examples.read_results runs/first``.

``m2distill train`` writes them to ``results.json``. ``RunResults`` describes every field.
"""

from __future__ import annotations

import sys
from pathlib import Path

from training import RunResults
from training.lifelong.records import read_record

#: Metric -> its meaning. A value is None if the metric does not apply to this run.
MEANING = {
    "fwt": "forward transfer: success on a new task, averaged over the training of its stage; higher is better",
    "nbt": "negative backward transfer: how much later stages lower the success on a task; lower is better",
    "auc": "area under the success curve: learning and remembering in one number; higher is better",
    "mean_final": "mean success on all tasks after the last stage; higher is better",
}


def main(run: str) -> None:
    """Print the success matrix and the metrics."""
    results = read_record(RunResults, Path(run) / "results.json")
    print(f"{results.label}, seed {results.seed}, {results.rollouts} rollouts of each task\n")

    print("Success rates. Row: after which stage. Column: on which task. The diagonal is the task just learned.")
    for stage, row in enumerate(results.success):
        print(f"  after stage {stage}:", "  ".join("  - " if rate is None else f"{rate:.2f}" for rate in row))
    for number, task in enumerate(results.tasks):
        print(f"  task {number}: {task.instruction}")

    print()
    for name, meaning in MEANING.items():
        value = results.metrics[name]
        print(f"{name:>10} = {'none' if value is None else f'{value:.2f}'}  {meaning}")


if __name__ == "__main__":
    main(sys.argv[1])
