"""Text: hashed features, readers, classifier, neighbours, server. Nothing outside this folder imports it."""

from .classifier import TextClassifier
from .files import TextFile, TextRow
from .hashed_text import HashedText

__all__ = ["HashedText", "TextClassifier", "TextFile", "TextRow"]
