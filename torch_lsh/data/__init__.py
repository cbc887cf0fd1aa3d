"""Data sets with sparse features and many labels."""

from .synthetic import synthetic_xmc
from .xmc import XMCDataset, XMCRows, collate_xmc, write_xmc

__all__ = ["XMCDataset", "XMCRows", "collate_xmc", "synthetic_xmc", "write_xmc"]
