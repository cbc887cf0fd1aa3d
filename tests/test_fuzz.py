"""Inputs that once broke the library (``make fuzz`` looks for others)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import torch_lsh

FUZZ = Path(__file__).parent.parent / "fuzz"


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="cases run in forked children, on Linux")
def test_corpus():
    sources = str(Path(torch_lsh.__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([sources, os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, FUZZ, "--corpus"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    for target in ("operators", "readers", "model_files"):
        assert f"{target}: {len(list((FUZZ / 'corpus' / target).iterdir()))} cases" in done.stdout
