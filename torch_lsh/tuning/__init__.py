"""Settings by measurement."""

from .autotune import AutoTuner, autotune

__all__ = ["AutoTuner", "autotune"]
