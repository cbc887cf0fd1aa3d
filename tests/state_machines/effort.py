"""How long the machines run: in the test suite, or with TORCH_LSH_FUZZ=1 as a part of ``make fuzz``."""

import os

from hypothesis import HealthCheck, settings

FUZZING = os.environ.get("TORCH_LSH_FUZZ") == "1"
EFFORT = settings(
    max_examples=500 if FUZZING else 12,
    stateful_step_count=60 if FUZZING else 20,
    derandomize=not FUZZING,
    print_blob=FUZZING,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
