"""Settings by measurement."""

from .auto_tuner import AutoTuner
from .autotune import autotune
from .trials import Trial, Tuning, TuningTable

__all__ = ["AutoTuner", "Trial", "Tuning", "TuningTable", "autotune"]
