"""The subcommands of ``m2distill``: one module each.

A module has ``add_parser(subparsers)``, which adds a parser of its own name (a dash for an underscore) with
``set_defaults(run=run)``, and ``run(args) -> int``, which returns the exit code. Only the module that is called is
imported, and what is heavy or belongs to another role (torch, robosuite, cyclonedds) is imported inside ``run``.
"""

from __future__ import annotations

#: Every subcommand and its line in ``m2distill --help``, in the order of the road. A closed list.
SUMMARIES: dict[str, str] = {
    "demos": "collect demonstrations of a suite's tasks with scripted experts",
    "import-bag": "make demonstrations of a robot's recordings (rosbag2)",
    "plan": "say how long a run takes on this machine, before it starts",
    "config": "explain the keys of a training configuration, or print one with all defaults",
    "train": "learn tasks one after another from demonstrations",
    "ablate": "train with each term of the distillation left out, on several seeds, into one table",
    "sweep": "search the settings of training, every trial a run",
    "export": "export a stage of a run as a bundle that a robot loads",
    "sign": "sign a bundle, so that robots take it and no other",
    "evaluate": "roll a bundle out in a world and count successes",
    "serve": "drive a robot with a bundle over DDS",
    "sim": "run a simulated robot that takes what a real one takes",
    "viewpoint": "say how a camera must be turned to see what it saw in training",
    "demo": "the whole road, from demonstrations to a served policy, with a report",
    "report": "make report.html from runs and evaluations",
    "doctor": "say what this machine can do, and how to get what is missing",
}
