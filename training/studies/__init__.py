"""Studies of several runs: ablation, search for settings, comparison, and an estimate of the training time."""
