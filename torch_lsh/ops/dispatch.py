"""The instruction set that the kernels run on."""

from __future__ import annotations

from .declaration import NeedsData, operator


@operator
def simd_level() -> str:
    """The instruction set in use: ``"avx512_bf16"``, ``"avx512"``, ``"avx2"``, ``"neon"`` or ``"scalar"``.

    >>> simd_level() in {"avx512_bf16", "avx512", "avx2", "neon", "scalar"}
    True
    """
    raise NeedsData


@operator
def use_simd_level(level: str) -> None:
    """Switches all kernels to another instruction set, for tests and benchmarks.

    Args:
        level: one of those of :func:`simd_level`; ``""``: the best one of this CPU.

    Raises:
        RuntimeError: this CPU does not run ``level``.
    """
