"""Learning: data, networks, losses, lifelong strategies, metrics and export. Torch lives here and nowhere else."""

# First: that package switches the telemetry of libraries off.
from m2distill_policy import __version__ as __version__
