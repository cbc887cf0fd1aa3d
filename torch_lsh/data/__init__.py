"""Data sets with sparse features and many labels, and features of text."""

from .hashed_text import HashedText
from .synthetic import synthetic_xmc
from .xmc import XMCDataset, XMCRows, collate_xmc, write_xmc

__all__ = ["HashedText", "XMCDataset", "XMCRows", "collate_xmc", "synthetic_xmc", "write_xmc"]
