"""Training by several processes."""

from .gradients import average_gradients

__all__ = ["average_gradients"]
