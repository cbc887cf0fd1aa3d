"""Loads the compiled operators into ``torch.ops.torch_lsh``."""

import sys
from pathlib import Path

import torch


def _compiled(folder: Path) -> list[Path]:
    return sorted(folder.glob("_C*.so")) + sorted(folder.glob("_C*.pyd"))


def _why_not_built(folder: Path) -> str:
    others = [Path(entry or ".", "torch_lsh").resolve() for entry in sys.path]
    installed = [other for other in others if other != folder.resolve() and _compiled(other)]
    if installed:
        return (
            f"{folder} holds sources without compiled operators, and hides the installation in {installed[0]}: "
            "run Python from another folder, or build here with `pip install --no-build-isolation -e .`"
        )
    return (
        "torch_lsh was not built: run `pip install --no-build-isolation -e .` in its source folder "
        "(needs a C++ compiler, PyTorch 2.11 or newer, and ninja)"
    )


_found = _compiled(Path(__file__).parent)
if not _found:
    raise ImportError(_why_not_built(Path(__file__).parent))
try:
    torch.ops.load_library(str(_found[0]))
except OSError as _error:
    raise ImportError(
        f"{_found[0]} does not load into PyTorch {torch.__version__}: {_error.__cause__ or _error}; "
        "build torch_lsh again with this PyTorch, or take PyTorch 2.11 to 2.13"
    ) from _error
