"""Measurements: each module is one command and writes JSON with machine, versions and commit."""

# First: that package switches the telemetry of libraries off.
from m2distill_policy import __version__ as __version__
