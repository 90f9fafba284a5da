"""The subcommands of ``m2distill``, one module each.

A module has two functions. ``add_parser(subparsers)`` adds a parser, named as the module but with dashes, and calls
``set_defaults(run=run)``. ``run(args) -> int`` runs the subcommand and returns the exit code. Only the module of the
given subcommand is imported. Packages that are slow to import, or that not every role installs (torch, robosuite,
cyclonedds), are imported inside ``run``.
"""

from __future__ import annotations

#: Subcommand -> its line in ``m2distill --help``, in the order in which a user needs the subcommands.
SUMMARIES: dict[str, str] = {
    "tasks": "list the simulated tasks and their instructions",
    "demos": "collect demonstrations of simulated tasks with scripted experts",
    "import-bag": "convert a robot's rosbag2 recordings to demonstrations",
    "plan": "estimate the training time on this machine",
    "config": "explain the settings of training, or print a configuration file with all defaults",
    "train": "train a policy on one task after another; also exports and evaluates it",
    "ablate": "train with and without each distillation term, on several seeds",
    "sweep": "search for the best training settings",
    "export": "export a trained stage as a bundle for a robot",
    "sign": "sign a bundle, so that a robot can check who made it",
    "evaluate": "measure a bundle's success rate in simulation",
    "serve": "run a bundle on a robot, over DDS",
    "sim": "run a simulated robot with the same interface as a real one",
    "viewpoint": "compare a camera's view with the view in training",
    "demo": "run everything once: collect, train, export, serve, report",
    "report": "compare runs in a table and an HTML page",
    "info": "show what a run, bundle, demonstration file or recording holds",
    "doctor": "check this machine, and say how to install what is missing",
}
