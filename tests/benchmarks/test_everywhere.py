"""The ways of training of the benchmark take the sampled path, and its report names what was measured."""

from __future__ import annotations

import everywhere
import pytest
import report

SIZE = {"rows": 5_000, "width": 8, "batch": 16, "active": 100}
QUICK = [name for name, way in everywhere.WAYS.items() if way.processes == 1 and not name.startswith("compiled")]


@pytest.mark.parametrize("name", QUICK)
def test_ways_are_sampled(name):
    try:
        found = everywhere.run(everywhere.WAYS[name], SIZE, steps=3)
    except ModuleNotFoundError as missing:
        pytest.skip(str(missing))
    assert (found["path"], str(found["layout"])) == ("sampled", "torch.sparse_coo")
    assert len(found["seconds"]) >= 1


def test_report(monkeypatch, tmp_path):
    machine = {"cpu": "A CPU", "simd": "avx2", "threads": 2, "torch": "2.13"}
    record = {"benchmark": "scaling", "rows": 1_000, "median_ms": 2.0, "mean_ms": 1234.5, "machine": machine}
    later = {**record, "rows": 2_000, "median_ms": 0.01234}
    lines = report.page_of("scaling", report.SECTIONS["scaling"], report.latest([record, later, later], ("rows",)))
    assert "A CPU (avx2), threads: 2" in lines
    assert "| 1,000 | 2 | – | – | 1,234 | – | – |" in lines
    assert lines.count("| 2,000 | 0.0123 |") == 1
