"""Learning: data, networks, losses, lifelong strategies, metrics and export. Torch is used here and nowhere else.

The public functions are in :mod:`training.api`. A module is imported when a name from it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

# This import comes first, because m2distill_policy switches the telemetry of libraries off.
from m2distill_policy import __version__ as __version__

if TYPE_CHECKING:
    from training.api import Trained, evaluate, extend, resume, train
    from training.lifelong.records import RunResults
    from training.lifelong.strategies import import_strategies
    from training.release import ReleaseCriteria
    from training.run_config import RunConfig

__all__ = [
    "ReleaseCriteria", "RunConfig", "RunResults", "Trained", "evaluate", "extend", "import_strategies", "resume",
    "train",
]  # fmt: skip

#: Public name -> the module that defines it.
_EXPORTS = {
    "ReleaseCriteria": "training.release",
    "RunConfig": "training.run_config",
    "RunResults": "training.lifelong.records",
    "import_strategies": "training.lifelong.strategies",
    **dict.fromkeys(("Trained", "evaluate", "extend", "resume", "train"), "training.api"),
}


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'training' has no attribute '{name}'")
    return getattr(import_module(_EXPORTS[name]), name)
