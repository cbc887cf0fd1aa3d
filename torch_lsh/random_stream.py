"""A measurement leaves the random stream as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def same_random_stream() -> Iterator[None]:
    """Puts PyTorch's random stream back at the end."""
    state = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(state)
