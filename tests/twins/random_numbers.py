from __future__ import annotations

MASK = (1 << 64) - 1


def mix(value: int) -> int:
    """splitmix64's output function, as in csrc/random.h."""
    value = (value + 0x9E3779B97F4A7C15) & MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def random_bits(seed: int, counter: int) -> int:
    return mix((mix(seed & MASK) + counter) & MASK)


def random_below(seed: int, counter: int, bound: int) -> int:
    return (random_bits(seed, counter) * bound) >> 64
