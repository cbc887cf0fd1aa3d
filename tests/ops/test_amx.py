"""Level amx_bf16: the instructions against emulated registers, and the level against the others."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from torch_lsh import ops

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).with_name("amx_instructions.cpp")
CPUINFO = Path("/proc/cpuinfo")
HAS_AMX = CPUINFO.exists() and "amx_bf16" in CPUINFO.read_text()


@pytest.mark.skipif(platform.machine() != "x86_64" or not CPUINFO.exists(), reason="wants Linux on x86-64")
@pytest.mark.skipif(shutil.which("g++") is None or not (ROOT / "csrc").is_dir(), reason="wants g++ and the sources")
def test_the_instructions_do_what_the_emulated_registers_do(tmp_path):
    """By the CPU, or else one by one by the program itself."""
    program = tmp_path / "program"
    sources = ["-I", str(ROOT / "csrc"), str(PROGRAM)]
    subprocess.run(
        ["g++", "-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror", *sources, "-o", str(program)], check=True
    )
    result = subprocess.run([program], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    kind, instructions = result.stdout.split()
    assert kind == ("real" if HAS_AMX else "emulated")
    assert HAS_AMX or int(instructions) > 10_000


@pytest.mark.skipif(not HAS_AMX, reason="/proc/cpuinfo has no amx_bf16")
def test_a_process_that_is_refused_tiles_does_without():
    """Linux refuses them to a process that has set up a signal stack without room for them."""
    code = """
import ctypes
class Stack(ctypes.Structure):
    _fields_ = [("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]
memory = ctypes.create_string_buffer(8192)
assert ctypes.CDLL(None).sigaltstack(ctypes.byref(Stack(ctypes.addressof(memory), 0, 8192)), None) == 0
from torch_lsh import ops
print(ops.simd_level())
ops.use_simd_level("amx_bf16")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "avx512_bf16\n"
    assert "(a signal stack of this process has no room for AMX tiles)" in result.stderr


@pytest.mark.skipif(not HAS_AMX, reason="/proc/cpuinfo has no amx_bf16")
def test_error_messages_name_the_level():
    with pytest.raises(RuntimeError, match="wanted one that this CPU supports: amx_bf16, avx512_bf16, "):
        ops.use_simd_level("sse9")


def problem(batch, rows, width):
    x, weight = torch.randn(batch, width), torch.randn(rows, width)
    return x, weight, torch.randn(rows)


@pytest.mark.skipif(not HAS_AMX, reason="/proc/cpuinfo has no amx_bf16")
@pytest.mark.parametrize("batch", [33, 256])
def test_the_level_equals_its_emulation(batch):
    x, weight, bias = problem(batch, 2000, 128)
    quantized, scale = torch.randint(-127, 128, weight.shape, dtype=torch.int8), torch.rand(len(weight))
    rows, positions = torch.arange(0, 2000, 2), torch.randint(1000, (batch, 1))
    results = []
    before = ops.simd_level()
    for level in ("amx_bf16", "amx_emulated"):
        ops.use_simd_level(level)
        half = x.bfloat16()
        loss, slopes, scales = ops.linear_softmax_loss(
            half, weight, bias, rows, None, positions, torch.ones(batch, 1), None
        )
        gradients = ops.linear_softmax_loss_backward(slopes, scales, half, weight, rows)
        best = ops.linear_topk(half, weight.bfloat16(), bias.bfloat16(), 5)
        best_of_int8 = ops.linear_topk(x, quantized, bias, 5, scale)
        results.append([loss, *gradients, *best, *best_of_int8])
    ops.use_simd_level(before)
    for real, emulated in zip(*results, strict=True):
        torch.testing.assert_close(real, emulated, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("value", "width"), [(float("nan"), 40), (float("inf"), 40), (1e-44, 40), (1, 70_000)])
def test_samples_that_have_no_digits_of_8_bits(value, width):
    """int8 rows are multiplied with such samples in float, as are very wide ones."""
    x, weight, _ = problem(9, 30, width)
    quantized, scale = (weight * 40).to(torch.int8), torch.rand(30) / width**0.5
    x[3] = torch.where(torch.arange(width) == 7, value, x[3] * (value if value < 1 else 1))
    results = []
    before = ops.simd_level()
    for level in ("scalar", "amx_emulated"):
        ops.use_simd_level(level)
        results.append(ops.linear_topk(x, quantized, None, 30, scale))
    ops.use_simd_level(before)
    (expected, _), (values, classes) = results
    torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-6 * width**0.5 * 40, equal_nan=True)
    assert all(row.unique().numel() == 30 for row in classes)
