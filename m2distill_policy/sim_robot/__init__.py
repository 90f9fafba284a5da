"""The simulated robot without its messages: what it follows, in lockstep and in real time, and how a rollout went."""
