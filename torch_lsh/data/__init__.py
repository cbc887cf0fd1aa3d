"""Data sets with sparse features and many labels, and features of text."""

from .hashed_text import HashedText
from .synthetic import synthetic_xmc
from .text_files import TextFile, TextRow
from .xmc import XMCDataset, XMCRows, collate_xmc, write_xmc

__all__ = ["HashedText", "TextFile", "TextRow", "XMCDataset", "XMCRows", "collate_xmc", "synthetic_xmc", "write_xmc"]
