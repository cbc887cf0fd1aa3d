"""Makes docs/benchmarks.md and its plots from what benchmarks wrote with --json.

    for name in step scaling latency retrieval; do python benchmarks/$name.py --json results.jsonl; done
    python benchmarks/latency.py --layers synthetic --opponents --threads 1 --json results.jsonl
    python benchmarks/latency.py --clustered 670091 --threads 1 --json results.jsonl
    python benchmarks/everywhere.py --threads 1 --json results.jsonl
    for gbit in "" "--gbit 1"; do python benchmarks/distributed.py measure $gbit --json results.jsonl; done
    python benchmarks/report.py results.jsonl

The page has a section per benchmark in the files. Of several runs of the same system the last one counts.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import distributed
import everywhere
import retrieval
import scaling
import single_queries

from torch_lsh import plots
from torch_lsh.benchmarking import latency, step

DOCS = Path(__file__).resolve().parents[1] / "docs"

Record = dict[str, Any]


class Section(NamedTuple):
    """What the page says about a benchmark, and the command for it. ``columns`` maps headings to keys of records."""

    title: str
    text: str
    draw: Callable[[Any, list[Record]], None]
    key: tuple[str, ...]
    columns: dict[str, str]
    command: str


MILLISECONDS = {"median ms": "median_ms", "min": "min_ms", "max": "max_ms"}
SECTIONS = {
    "step": Section(
        "A training step",
        "Forward, loss, backward and Adam at 670,091 x 128, batch 256, 8,192 active rows where rows are sampled.",
        step.draw,
        ("system",),
        {"output layer": "system", **MILLISECONDS, "times torch_lsh": "times_ours"},
        "step.py",
    ),
    "scaling": Section(
        "Width of the layer",
        "A training step at other numbers of rows, 8,192 of them active. The mean includes re-hashes.",
        scaling.draw,
        ("rows",),
        {"rows": "rows", **MILLISECONDS, "mean": "mean_ms", "tables, MB": "index_mb", "to build, s": "build_s"},
        "scaling.py",
    ),
    "latency": Section(
        "The five best classes",
        "Of 670,091, for batches of 1 to 1,024 inputs.",
        latency.draw,
        ("system", "batch"),
        {"call": "system", "batch": "batch", **MILLISECONDS, "p99": "p99_ms", "speed-up": "speedup"},
        "latency.py",
    ),
    "single queries": Section(
        "The ten best classes of single inputs",
        "Approximate, at several recalls, beside the nearest-neighbour indexes of faiss and hnswlib, which get the "
        "bias as one more coordinate. Rows of a trained layer (synthetic), and rows around random centers, a hundred "
        "to each (clustered; `--clustered 670091`). The bound is the bytes that a look-up reads over the measured "
        "bandwidth.",
        single_queries.draw,
        ("layer", "system"),
        {
            "layer": "layer",
            "call": "system",
            "recall@1": "recall@1",
            "recall@10": "recall@10",
            "p50 ms": "p50_ms",
            "p99": "p99_ms",
            "bound": "bound_ms",
            "to build, s": "build_s",
            "index, MB": "index_mb",
        },
        "latency.py --layers synthetic --opponents --threads 1",
    ),
    "retrieval": Section(
        "What the indexes find",
        "Of the ten best rows of trained layers, by rows that a look-up returns; one thread. `exact` scores every row, "
        "`uniform` draws rows.",
        retrieval.draw,
        ("layer", "setting", "share"),
        {
            "layer": "layer",
            "rows": "rows",
            "index": "setting",
            "returned": "returned",
            "recall@1": "recall@1",
            "recall@10": "recall@10",
            "us": "us",
            "to build, s": "build_s",
            "index, MB": "index_mb",
        },
        "retrieval.py",
    ),
    "everywhere": Section(
        "Ways to train",
        "A training step at 200,000 x 128, batch 256, 8,192 active rows, in loops, compilers, trainers and processes, "
        "which share the cores and the batch; beside `nn.Linear` in the same way and beside the eager loop, which "
        "takes turns with it (with several processes: before and after). CPU: of all processes together. More "
        "processes than cores wait for each other; there ratios, marked with an asterisk, are those of CPU times. "
        "Exchange: the messages of a step alone; without exchange: the rest, in eager steps. MB: sent by a process per "
        "step.",
        everywhere.draw,
        ("way",),
        {
            "way": "way",
            "`nn.Linear` ms": "dense_ms",
            **MILLISECONDS,
            "eager ms": "eager_ms",
            "times eager": "times_eager",
            "CPU ms": "cpu_ms",
            "eager CPU ms": "eager_cpu_ms",
            "exchange ms": "exchange_ms",
            "exchange CPU ms": "exchange_cpu_ms",
            "without exchange": "without_exchange",
            "path": "path",
            "gradient": "gradient",
            "MB": "sent_mb",
            "MB of `nn.Linear`": "dense_sent_mb",
        },
        "everywhere.py --threads 1",
    ),
    "distributed": Section(
        "Several machines",
        "A training step at 670,091 x 128, 256 samples per process, 8,192 active rows; processes of one thread, each "
        "in a network namespace of its own, with and without a limit of its link. All share one CPU.",
        distributed.draw,
        ("system", "processes", "gbit"),
        {"system": "system", "processes": "processes", "Gbit/s": "gbit", **MILLISECONDS, "MB sent": "sent_mb"},
        "distributed.py measure --gbit 1",
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="JSON lines of benchmarks")
    arguments = parser.parse_args()
    records = [json.loads(line) for name in arguments.files for line in Path(name).read_text().splitlines()]
    parts = [_HEAD]
    for name, section in SECTIONS.items():
        mine = latest([record for record in records if record.get("benchmark") == name], section.key)
        if mine:
            plots.draw(DOCS / "pictures" / picture_of(name), partial(section.draw, records=mine))
            parts.append(page_of(name, section, mine))
    (DOCS / "benchmarks.md").write_text("\n".join(parts))


_HEAD = """\
# Benchmark report

Made by `benchmarks/report.py` from what the benchmarks wrote; `benchmarks/README.md` lists them all. The systems of a
section were measured in turn, in one process. Times are medians, with the shortest and the longest run.
"""


def latest(records: list[Record], key: tuple[str, ...]) -> list[Record]:
    """The last record of each system; what was skipped is left out. Ways of training come in their order."""
    measured = [record for record in records if "skipped" not in record and record.get("system") != "constants"]
    found = {tuple(record[name] for name in key): record for record in measured}
    order = list(everywhere.WAYS)
    return sorted(found.values(), key=lambda record: order.index(record["way"]) if "way" in record else 0)


def picture_of(name: str) -> str:
    return f"benchmark_{name.replace(' ', '_')}.svg"


def page_of(name: str, section: Section, records: list[Record]) -> str:
    machine = records[-1]["machine"]
    shown = [{**record, **everywhere.ratios(record)} if "way" in record else record for record in records]
    rows = [[cell(record.get(column)) for column in section.columns.values()] for record in shown]
    lines = [
        f"## {section.title}\n",
        f"{section.text} {machine['cpu']} ({machine['simd']}), threads: {machine['threads']}, PyTorch "
        f"{machine['torch']}: `python benchmarks/{section.command}`.\n",
        f"![{section.title}](pictures/{picture_of(name)})\n",
        f"| {' | '.join(section.columns)} |",
        "|---" * len(section.columns) + "|",
        *(f"| {' | '.join(cells)} |" for cells in rows),
    ]
    return "\n".join(lines) + "\n"


def cell(value: Any) -> str:
    """A number with three digits, a word as it is.

    >>> cell(1234.5), cell(0.01234), cell(None)
    ('1,234', '0.0123', '–')
    """
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    main()
