"""Loads the compiled operators into ``torch.ops.torch_lsh``."""

from pathlib import Path

import torch

_found = sorted(Path(__file__).parent.glob("_C*.so")) + sorted(Path(__file__).parent.glob("_C*.pyd"))
if not _found:
    raise ImportError(
        "torch_lsh was not built: run `pip install --no-build-isolation -e .` in its source folder "
        "(needs a C++ compiler, PyTorch 2.11 or newer, and ninja)"
    )
torch.ops.load_library(str(_found[0]))
