from __future__ import annotations

import sys

import pytest

from torch_lsh.interrupts import quiet_worker


@pytest.mark.parametrize(
    ("error", "shown"),
    [(EOFError, False), (ConnectionResetError, False), (BrokenPipeError, False), (ValueError, True)],
)
def test_a_worker_whose_reader_ends_prints_nothing(monkeypatch, error, shown):
    """The thread of multiprocessing that hands tensors over passes its errors to the hook."""
    seen = []
    monkeypatch.setattr(sys, "excepthook", lambda *some: seen.append(some))
    quiet_worker()
    sys.excepthook(error, error("gone"), None)
    assert (len(seen) == 1) == shown
