"""Lifelong imitation learning by multi-modal distillation, from demonstrations to a robot."""

__version__ = "0.1.0"
