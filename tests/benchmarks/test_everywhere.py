"""The ways of training of the benchmark take the sampled path, and its report names what was measured."""

from __future__ import annotations

import json

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
    assert len(found["seconds"]) == len(found["cpu"]) >= 1
    assert found["eager_cpu"] > 0


def test_more_processes_than_cores_are_compared_by_cpu_time(monkeypatch):
    monkeypatch.setattr(everywhere.os, "cpu_count", lambda: 2)
    found = {"seconds": [0.4], "eager": [0.1], "cpu": [0.3], "eager_cpu": 0.2, "sent": [8e6], "path": "", "layout": ""}
    found |= {"exchange": [0.1], "exchange_cpu": [0.2]}
    monkeypatch.setattr(everywhere, "run", lambda *arguments: found)
    two, four = (everywhere.compare(everywhere.Way("sharded", count), SIZE, 1, 0) for count in (2, 4))
    assert everywhere.ratios(two) == {"times_eager": "4", "without_exchange": "3"}
    assert everywhere.ratios(four) == {"times_eager": "1.5*", "without_exchange": "0.5*"}


def test_report():
    machine = {"cpu": "A CPU", "simd": "avx2", "threads": 2, "torch": "2.13"}
    record = {"benchmark": "scaling", "rows": 1_000, "median_ms": 2.0, "mean_ms": 1234.5, "machine": machine}
    later = {**record, "rows": 2_000, "median_ms": 0.01234}
    lines = report.page_of("scaling", report.SECTIONS["scaling"], report.latest([record, later, later], ("rows",)))
    assert "A CPU (avx2), threads: 2" in lines
    assert "| 1,000 | 2 | – | – | 1,234 | – | – |" in lines
    assert lines.count("| 2,000 | 0.0123 |") == 1


@pytest.mark.filterwarnings("ignore:No artists with labels")
def test_every_section_of_the_report_is_drawn(monkeypatch, tmp_path):
    monkeypatch.setattr(report, "DOCS", tmp_path)
    (tmp_path / "pictures").mkdir()
    machine = {"cpu": "A CPU", "simd": "avx2", "threads": 2, "torch": "2.13"}
    words = {"system", "way", "setting", "layer", "path", "gradient"}
    with open(tmp_path / "results.jsonl", "w") as out:
        for name, section in report.SECTIONS.items():
            columns = {*section.columns.values(), *section.key}
            record = {column: "eager" if column in words else 1 for column in columns}
            record.update(benchmark=name, machine=machine, by_cpu=False)
            out.write(json.dumps(record) + "\n")
    monkeypatch.setattr("sys.argv", ["report.py", str(tmp_path / "results.jsonl")])
    report.main()
    page = (tmp_path / "benchmarks.md").read_text()
    for name, section in report.SECTIONS.items():
        assert f"## {section.title}" in page
        assert (tmp_path / "pictures" / report.picture_of(name)).stat().st_size > 0
