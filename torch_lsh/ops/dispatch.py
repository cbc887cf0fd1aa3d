"""The instruction set that the kernels run on."""

from __future__ import annotations

from .declaration import NeedsData, operator


@operator
def simd_level() -> str:
    """The instruction set in use.

    ``"amx_bf16"``, ``"avx512_bf16"``, ``"avx512"`` or ``"avx2"`` on x86, ``"sve256"``, ``"neon_bf16"`` or ``"neon"`` on
    AArch64, or ``"scalar"``.

    >>> x86, aarch64 = {"amx_bf16", "avx512_bf16", "avx512", "avx2"}, {"sve256", "neon_bf16", "neon"}
    >>> simd_level() in x86 | aarch64 | {"scalar"}
    True
    """
    raise NeedsData


@operator
def cpu_tuning() -> str:
    """What kernels choose by the caches of this CPU. None of it changes results.

    >>> "L1 of" in cpu_tuning()
    True
    """
    raise NeedsData


@operator
def multiplies_bfloat16() -> bool:
    """Whether operators multiply bfloat16 numbers as such, which rounds the other operand to bfloat16.

    Else this CPU multiplies float32 numbers as fast, and operators take bfloat16 numbers as float32.

    >>> multiplies_bfloat16() in {True, False}
    True
    """
    raise NeedsData


@operator
def use_simd_level(level: str) -> None:
    """Switches all kernels to another instruction set, for tests and benchmarks.

    Args:
        level: one of those of :func:`simd_level`; ``""``: the best one of this CPU; ``"amx_emulated"``,
            ``"arm_emulated"``: products of tiles of these shapes on any CPU, slowly, for tests.

    Raises:
        RuntimeError: this CPU does not run ``level``.
    """
