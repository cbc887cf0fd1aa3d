"""Inputs that once broke the library, and a few new ones: what ``make fuzz`` does for longer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import torch_lsh

FUZZ = Path(__file__).parent.parent / "fuzz"


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="cases run in forked children, on Linux")
@pytest.mark.parametrize("options", [["--corpus"], ["--seed", "0", "--cases", "150", "operators", "readers"]])
def test_fuzz(options):
    sources = str(Path(torch_lsh.__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([sources, os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, FUZZ, *options], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ", 0 failures" in done.stdout
