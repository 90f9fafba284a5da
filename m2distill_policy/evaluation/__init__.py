"""Rollouts of a bundle in simulated environments. It uses the same runtime as a robot, and no torch."""
