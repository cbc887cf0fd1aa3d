"""Settings by measurement."""

from .auto_tuner import AutoTuner
from .autotune import autotune
from .trials import Settings, TrainingTable, TrainingTrial, TrainingTuning, Trial, Tuning, TuningTable

__all__ = [
    "AutoTuner",
    "Settings",
    "TrainingTable",
    "TrainingTrial",
    "TrainingTuning",
    "Trial",
    "Tuning",
    "TuningTable",
    "autotune",
]
