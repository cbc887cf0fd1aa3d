"""Fixtures that every test may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from torch_lsh import ops

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def _runnable_levels() -> list[str]:
    levels = []
    for level in ("scalar", "avx2", "avx512", "avx512_bf16", "amx_bf16", "neon", "neon_bf16", "sve256"):
        try:
            ops.use_simd_level(level)
            levels.append(level)
        except RuntimeError:
            pass
    ops.use_simd_level(os.environ.get("TORCH_LSH_SIMD", ""))
    return levels


def _use(level: str) -> Iterator[str]:
    before = ops.simd_level()
    ops.use_simd_level(level)
    yield level
    ops.use_simd_level(before)


@pytest.fixture(params=_runnable_levels())
def simd_level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once per instruction set that this CPU has."""
    yield from _use(request.param)


@pytest.fixture(params=[*_runnable_levels(), "amx_emulated", "arm_emulated"])
def product_level(request: pytest.FixtureRequest) -> Iterator[str]:
    """The same, and the emulations of AMX and Arm, for operators that may take products of tiles."""
    yield from _use(request.param)


@pytest.fixture(params=[1, 2], ids=["1thread", "2threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _same_start() -> None:
    torch.manual_seed(0)
    # Threads are for tests that are about them: in small steps on a busy machine they mostly wait for one another.
    torch.set_num_threads(1)


@pytest.fixture
def real_data() -> Path:
    """The folder of the real data sets: ``TORCH_LSH_DATA``, or ``shared/data`` beside the checkout."""
    folder = Path(os.environ.get("TORCH_LSH_DATA", SHARED_DATA))
    if not folder.is_dir():
        pytest.skip("real data sets are not here (set TORCH_LSH_DATA)")
    return folder
