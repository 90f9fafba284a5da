"""Benchmarks: commands that write their results as JSON with machine, versions and commit, and what they share."""

# This import comes first, because m2distill_policy switches the telemetry of libraries off.
from m2distill_policy import __version__ as __version__
