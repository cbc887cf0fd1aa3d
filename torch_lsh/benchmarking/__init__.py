"""Timing of this library beside plain PyTorch, for the benchmarks and for ``python -m torch_lsh bench``."""
