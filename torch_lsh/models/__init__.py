"""Whole models."""

from .text import TextClassifier
from .xmc import XMCClassifier

__all__ = ["TextClassifier", "XMCClassifier"]
