"""Whole models."""

from .xmc import XMCClassifier

__all__ = ["XMCClassifier"]
