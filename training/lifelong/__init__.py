"""Learning one task after another: strategy, memory, stage, run."""
