"""Learning: data, networks, losses, lifelong strategies, metrics and export. Torch lives here and nowhere else."""
