"""The simulated robot without its transport: the commands it follows, lockstep and real time, and rollout reports."""
