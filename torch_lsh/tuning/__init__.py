"""Settings by measurement."""

from .auto_tuner import AutoTuner
from .autotune import autotune, best_is_label, tune_training
from .lookups import tune_lookups
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
    "best_is_label",
    "tune_lookups",
    "tune_training",
]
