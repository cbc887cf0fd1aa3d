"""The stopwatch for parts of a step."""

from __future__ import annotations

import time

from torch_lsh.stopwatch import Stopwatch, part, timed


class Timed:
    stopwatch: Stopwatch | None = None

    @timed("work")
    def work(self, number):
        """Works."""
        return number + 1


def test_nested_parts_have_their_own_time():
    stopwatch = Stopwatch()
    with stopwatch.part("outer"), part(stopwatch, "inner"):
        time.sleep(0.02)
    milliseconds = stopwatch.milliseconds()
    assert milliseconds["inner"] >= 20
    assert milliseconds["outer"] < 20
    assert stopwatch.calls() == {"outer": 1, "inner": 1}
    stopwatch.reset()
    assert stopwatch.milliseconds() == {}


def test_methods_are_timed_where_there_is_a_stopwatch():
    timed_object = Timed()
    assert timed_object.work(1) == 2
    timed_object.stopwatch = Stopwatch()
    assert timed_object.work(1) == 2
    assert timed_object.stopwatch.calls() == {"work": 1}
    assert Timed.work.__doc__ == "Works."
    with part(None, "nothing"):
        pass
