"""Rollouts of a bundle in simulated environments, with the same runtime as on a robot and without torch."""
