"""Lifelong imitation learning by multi-modal distillation, from demonstrations to a robot."""

import os

__version__ = "0.2.0"

# What libraries would tell their vendors, and store about this machine, is off: in this process before any of them is
# imported, and in its child processes. onnxruntime 1.31 looks up a host and writes a device id when it is imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
