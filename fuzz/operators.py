"""Calls of operators with random arguments, made from their schemas and from the samples of ``tests/twins``.

A call may succeed or raise; it may not crash, hang, change what it does not say it changes, change anything before it
raises, or raise something that names no argument. Where only the shapes and the numbers of a sample were changed, it
gives what the twin in plain PyTorch gives.
"""

from __future__ import annotations

import functools
import random
import warnings
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import twins
import values
from torch import Tensor
from twins.samples import SAMPLES, Sample

import torch_lsh.nn.compiled  # noqa: F401  (defines torch.ops.torch_lsh_nn)
from torch_lsh import ops
from torch_lsh.ops.declaration import declared

LEVELS = ("scalar", "avx2", "avx512", "avx512_bf16", "amx_emulated", "arm_emulated")
_NAMESPACES = "torch_lsh", "torch_lsh_nn"

# Estimates from codes: the twins do not round as the operators do, and equal scores are ordered by chance. And Adam,
# which takes a whole step by a slope that is that of rounding alone.
_APPROXIMATE = {"query_partition", "search_partition", "sketch_candidates", "fit_committee"}
# These find out on the way that the tables they were given contradict each other.
_WRITE_BEFORE_ERRORS = {"update_partition"}
_MOST_BYTES = 1 << 28  # of arguments
_UNREADABLE = "API call failed", "std::", "vector::", "INTERNAL ASSERT", "bad_alloc"


@functools.cache
def _schemas() -> dict[str, torch._C.FunctionSchema]:
    found = torch._C._jit_get_all_schemas()
    return {schema.name: schema for schema in found if schema.name.partition("::")[0] in _NAMESPACES}


@functools.cache
def _runnable_levels() -> tuple[str, ...]:
    before, runnable = ops.simd_level(), []
    for level in LEVELS:
        try:
            ops.use_simd_level(level)
            runnable.append(level)
        except RuntimeError:
            pass
    ops.use_simd_level(before)
    return tuple(runnable)


@functools.cache
def _samples(name: str, variant: int) -> list[Sample]:
    torch.manual_seed(variant)
    return SAMPLES[name]()


class Call(NamedTuple):
    """One call of an operator; ``compared``: with its twin."""

    operator: str
    arguments: list[Any]
    compared: bool
    level: str
    threads: int


def make(seed: int) -> Call:
    """The call of a seed."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    threads, level = rng.choice((1, 1, 1, 2)), rng.choice(_runnable_levels())
    operator = rng.choice(sorted(_schemas()))
    name = operator.partition("::")[2]
    if name not in SAMPLES or rng.random() < 0.1:
        types = [str(argument.real_type) for argument in _schemas()[operator].arguments]
        return Call(operator, [values.of_type(rng, one) for one in types], False, level, threads)
    sample = rng.choice(_samples(name, rng.randrange(20)))
    arguments = _copies(list(sample.arguments))  # for calls change them
    if rng.random() < 0.35:
        return Call(operator, _other_shapes(rng, arguments), sample.has_twin and rng.random() < 0.5, level, threads)
    for _ in range(rng.choice((1, 1, 1, 2, 3)) if arguments else 0):
        position = rng.randrange(len(arguments))
        arguments[position] = values.changed(rng, arguments[position])
    return Call(operator, arguments, False, level, threads)


def _other_shapes(rng: random.Random, arguments: list[Any]) -> list[Any]:
    """Changes one size wherever it occurs, mostly so that the arguments still fit, and draws numbers anew."""
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    sizes = sorted({size for argument in tensors for size in argument.shape})
    if not sizes:
        return arguments
    old, new = rng.choice(sizes), rng.choice((*values.SIZES, rng.randrange(200)))

    def other(argument: Any) -> Any:
        if not isinstance(argument, Tensor):
            return argument
        result = argument.detach()
        for dim, size in enumerate(argument.shape):
            if size == old and result.numel() // max(1, old) * new <= 20_000:
                result = values.resized(result, dim, new)
        if result.dtype in values.FLOATING and argument.dtype is not torch.bfloat16 and rng.random() < 0.3:
            negative = bool((argument < 0).any())  # second moments and numbers of steps are not
            result = torch.randn(result.shape, dtype=result.dtype)
            result = result if negative else result.abs()
        return result.requires_grad_(argument.requires_grad)

    return [other(argument) for argument in arguments]


def _copies(arguments: list[Any]) -> list[Any]:
    def copy(argument: Any) -> Any:
        if not isinstance(argument, Tensor):
            return argument
        copied = argument.detach().clone()  # keeps strides where there are no overlaps
        return copied.requires_grad_(argument.requires_grad)

    return [copy(argument) for argument in arguments]


def _same(one: Any, other: Any) -> bool:
    if not isinstance(one, Tensor):
        return True
    if one.is_meta or one.numel() == 0:
        return True
    if one.layout is not torch.strided:
        return True
    one, other = (some.detach().resolve_neg().resolve_conj().reshape(-1) for some in (one, other))
    return torch.equal(*(some.clone(memory_format=torch.contiguous_format).view(torch.uint8) for some in (one, other)))


def run(full_name: str, arguments: list[Any], compared: bool, level: str, threads: int) -> str:
    """Calls an operator and checks what must hold of any call.

    Returns:
        "accepted", "refused", or "compared" with the twin.

    Raises:
        AssertionError: something does not hold.
    """
    torch.set_num_threads(threads)
    ops.use_simd_level(level if level in _runnable_levels() else "")
    namespace, _, name = full_name.partition("::")
    written = [
        argument.alias_info is not None and argument.alias_info.is_write for argument in _schemas()[full_name].arguments
    ]
    if any(writes and isinstance(value, Tensor) and value.is_neg() for writes, value in zip(written, arguments)):
        return "skipped"  # PyTorch calls the operator with a copy, and fails to copy that back
    dense = [value for value in arguments if isinstance(value, Tensor) and value.layout is torch.strided]
    if sum(value.nbytes for value in dense) > _MOST_BYTES:
        return "skipped"  # copies would not fit into memory
    before = _copies(arguments)
    of_twin = _copies(arguments) if compared else []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = (declared[name] if namespace == "torch_lsh" else _overload(full_name))(*arguments)
    except Exception as error:
        if not any(isinstance(value, Tensor) and value.is_meta for value in arguments):
            _check_error(full_name, error)  # PyTorch itself fails for tensors of 2^62 numbers that have no data
        unchanged = name in _WRITE_BEFORE_ERRORS or all(map(_same, before, arguments))
        if not unchanged:
            raise AssertionError(f"{full_name} changed an argument before it raised {error}") from error
        return "refused"
    for position, (old, value) in enumerate(zip(before, arguments)):
        assert written[position] or _same(old, value), f"{full_name} changed argument {position}"
    if compared and name not in _APPROXIMATE and hasattr(twins, name):
        return _compare(name, result, arguments, of_twin)
    return "accepted"


def _overload(full_name: str) -> Any:
    namespace, _, name = full_name.partition("::")
    return getattr(getattr(torch.ops, namespace), name).default


def _check_error(full_name: str, error: Exception) -> None:
    message = str(error)
    assert not any(words in message for words in _UNREADABLE), f"{full_name} raised {type(error).__name__}: {message}"
    if message.startswith("torch_lsh: ") and "more memory than there is" not in message:
        names = [argument.name for argument in _schemas()[full_name].arguments]
        assert any(name in message for name in names) or "instruction set" in message or "target" in message, message


def _compare(name: str, result: Any, arguments: list[Any], of_twin: list[Any]) -> str:
    if name == "probe_codes" and of_twin[1].shape[2:].numel() > 10:
        return "accepted"  # the twin lists all sets of changes
    if name == "draw_rows" and bool((of_twin[2].diff() < 0).any()):
        return "accepted"  # no sums: the search ends somewhere
    try:
        expected = getattr(twins, name)(*of_twin)
    except Exception:  # a twin defines what the operator does with valid arguments only
        return "accepted"
    if name in ("linear_softmax_loss", "linear_softmax_sums"):
        result, expected = ((*some[:-2], some[-2] * some[-1]) for some in (result, expected))  # the gradient
    if name.endswith("topk"):
        result, expected = ((some[0], _of_untied(some[1], expected[0])) for some in (result, expected))
    for ours, theirs in zip(_listed(result) + arguments, _listed(expected) + of_twin, strict=True):
        if not isinstance(ours, Tensor):
            assert ours == theirs, f"{name} gives {ours}; its twin {theirs}"
        elif ours.dtype.is_floating_point:
            tolerance = 2e-2 if torch.bfloat16 in (ours.dtype, *_dtypes(arguments)) else 1e-4
            torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance, equal_nan=True, msg=name.__add__)
        else:
            torch.testing.assert_close(ours, theirs, msg=name.__add__)
    return "compared"


def _of_untied(classes: Tensor, values: Tensor) -> Tensor:
    """``classes`` with -1 where another value is as large but for rounding, so that either order is right."""
    tied = torch.isclose(values[..., :-1], values[..., 1:], rtol=1e-4, atol=1e-4, equal_nan=True)
    tied = F.pad(tied, (1, 0), value=False) | F.pad(tied, (0, 1), value=True)  # what comes next is not known
    return torch.where(tied, -1, classes)


def _listed(result: Any) -> list[Any]:
    return list(result) if isinstance(result, tuple) else [] if result is None else [result]


def _dtypes(arguments: list[Any]) -> list[torch.dtype]:
    return [argument.dtype for argument in arguments if isinstance(argument, Tensor)]
