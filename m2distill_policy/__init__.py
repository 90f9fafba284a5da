"""Lifelong imitation learning by multi-modal distillation, from demonstrations to a robot.

The public API; see :func:`load` for an example. A name is imported when it is first used, so that
``import m2distill_policy`` loads neither torch nor ONNX Runtime. Training is in the package ``training``.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

# Switch off the telemetry of libraries. Set here, before any of them is imported; child processes inherit it.
# onnxruntime 1.31 looks up a host and writes a device id when it is imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

if TYPE_CHECKING:
    from m2distill_policy.bundle import Bundle, open_bundle
    from m2distill_policy.contract import Contract
    from m2distill_policy.errors import M2DistillError
    from m2distill_policy.installation import PRETRAINED
    from m2distill_policy.policy import Action, Policy, load
    from m2distill_policy.runtime.mixture import Mixture
    from m2distill_policy.sim.gym_env import make_env

#: Public name -> the module that defines it.
_MODULES = {
    "Action": "policy",
    "Bundle": "bundle",
    "Contract": "contract",
    "M2DistillError": "errors",
    "Mixture": "runtime.mixture",
    "PRETRAINED": "installation",
    "Policy": "policy",
    "load": "policy",
    "make_env": "sim.gym_env",
    "open_bundle": "bundle",
}

__all__ = [
    "PRETRAINED", "Action", "Bundle", "Contract", "M2DistillError", "Mixture", "Policy", "__version__", "load",
    "make_env", "open_bundle",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    try:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    except ModuleNotFoundError as error:
        from m2distill_policy.installation import missing_package

        advice = missing_package((error.name or "").partition(".")[0], ["sim"] if name == "make_env" else ["robot"])
        if advice is None:
            raise
        raise ModuleNotFoundError(f"{__name__}.{name} {advice}", name=error.name) from error


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
