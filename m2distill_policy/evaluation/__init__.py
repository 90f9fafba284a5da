"""Rollouts of a bundle in a world: what is measured is what is served. No torch here."""
