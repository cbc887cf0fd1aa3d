"""Recall and time of look-ups: which of the highest-scoring rows of trained layers the hash tables find.

    python benchmarks/retrieval.py --layers yso-en citeulike-t --json out.jsonl --plot out.png

Recall@k is the share of the k highest-scoring rows among the rows returned, by the share of the layer's rows that a
query asks for. Queries are hidden activations of test rows: about 1,500, and 512 others that an index may learn from.
Time is microseconds per query in batches of 256 on one thread. For comparison: uniform draws, the exact top-k, and the
sign codes of all rows.

benchmarks/trained_layers.py trains the layers at the first use and keeps them in a temporary folder. Settings are
those of torch_lsh.index.config.named_index_config:

    --settings 'hash=dwta' 'num_tables=100,probes=4,mips=True' 'hash=learned,probes=100'
"""

from __future__ import annotations

import argparse
import ast
import functools
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from trained_layers import TrainedLayer, trained_layer

from torch_lsh import plots
from torch_lsh.benchmarking import harness
from torch_lsh.index.base import Index
from torch_lsh.index.config import named_index_config
from torch_lsh.index.sign_codes import SignCodeIndex

LAYERS = ("yso-en", "citeulike-t", "wikitext-2", "synthetic")
KS = (1, 10, 100)
BATCH = 256
DEFAULT_SETTINGS = (
    "",
    "mips=True",
    "probes=4",
    "hash=simhash_hadamard",
    "hash=simhash_hadamard,probes=4",
    "hash=cross_polytope",
    "hash=cross_polytope,probes=4",
    "hash=dwta",
    "hash=dwta,probes=4",
    "hash=simhash_hadamard,probes=4,sketch_bits=480",
    "hash=simhash_hadamard,mips=True,balance=True",
    "hash=simhash_hadamard,mips=True,balance=True,probes=4,sketch_bits=480",
    "hash=simhash_hadamard,mips=True,balance=True,probes=8,bucket_size=128,sketch_bits=480",
    "hash=simhash_hadamard,mips=True,balance=True,probes=16,bucket_size=256,hashes_per_table=8,sketch_bits=960",
    "hash=learned",
    "selection=frequency",
    "bucket_policy=fifo",
)


def settings_of(text: str) -> dict[str, Any]:
    """``"hash=dwta,probes=4"`` as settings of an index; ``hash`` also names other kinds of index."""
    settings: dict[str, Any] = {"hash": "simhash"}
    for part in filter(None, text.split(",")):
        name, value = part.split("=")
        word = value.isidentifier() and value not in ("True", "False", "None")
        settings[name] = value if word else ast.literal_eval(value)
    return settings


def index_of(setting: str, num_rows: int, in_features: int) -> Index:
    settings = settings_of(setting)
    return named_index_config(settings.pop("hash"), **settings).make(num_rows, in_features, seed=0)


def top_rows(layer: TrainedLayer, k: int) -> Tensor:
    """The ``k`` highest-scoring rows of each query, exactly."""
    return torch.cat([F.linear(x, layer.weight, layer.bias).topk(k).indices for x in layer.queries.split(BATCH)])


def recall(found: Tensor, best: Tensor) -> dict[str, float]:
    found = found.sort(1).values.contiguous()
    at = torch.searchsorted(found, best).clamp_(max=found.shape[1] - 1)
    hits = (found.gather(1, at) == best).float()
    return {f"recall@{k}": hits[:, :k].mean().item() for k in KS}


def look_up(query: Callable[[Tensor], Tensor], queries: Tensor) -> tuple[Tensor, float]:
    """What is found, and microseconds per query: the median of the batches."""
    query(queries[:BATCH])
    found, seconds = [], []
    for x in queries.split(BATCH):
        start = time.perf_counter()
        found.append(query(x))
        seconds.append((time.perf_counter() - start) / len(x))
    return torch.cat(found), sorted(seconds)[len(seconds) // 2] * 1e6


def seconds_of(run: Callable[..., Any], *arguments: Any) -> float:
    start = time.perf_counter()
    run(*arguments)
    return time.perf_counter() - start


def measure(name: str, layer: TrainedLayer, settings: Sequence[str], shares: Sequence[float]) -> list[dict[str, Any]]:
    rows = len(layer.weight)
    order = torch.randperm(len(layer.queries), generator=torch.Generator().manual_seed(0))
    sample, layer = layer.queries[order[:512]], layer._replace(queries=layer.queries[order[512:]])
    best, microseconds = look_up(lambda x: top_rows(layer._replace(queries=x), KS[-1]), layer.queries)
    records = [{"setting": "exact", "share": 1.0, "returned": rows, "us": microseconds, **recall(best, best)}]

    def add(setting: str, query: Callable[[Tensor, int], Tensor], about: dict[str, Any]) -> None:
        for share in shares:
            wanted = max(1, round(share * rows))
            found, microseconds = look_up(lambda x, count=wanted: query(x, count), layer.queries)
            returned = (found >= 0).sum(1).float().mean().item()
            measured = {"share": share, "returned": returned, "us": microseconds, **recall(found, best)}
            records.append({"setting": setting, **measured, **about})

    generator = torch.Generator().manual_seed(0)
    add("uniform", lambda x, count: torch.randint(rows, (len(x), count), generator=generator), {})
    sketch = SignCodeIndex(rows, layer.weight.shape[1])
    build = seconds_of(sketch.build, layer.weight, layer.bias, sample)
    add("sign codes", sketch.query, {"build_s": build, "index_mb": sketch.nbytes / 1e6})
    for setting in settings:
        index = index_of(setting, *layer.weight.shape)
        build = seconds_of(index.build, layer.weight, layer.bias, sample)
        loads = index.bucket_loads()
        tables = None if loads is None else len(loads)
        about = {"build_s": build, "index_mb": index.nbytes / 1e6, "K": index.hashes_per_table, "L": tables}
        add(setting or "default", index.query, {**about, "bucket_size": index.bucket_size})
    return [{"benchmark": "retrieval", "layer": name, "rows": rows, **record} for record in records]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=LAYERS, help="data sets whose layers are used")
    parser.add_argument("--settings", nargs="+", default=DEFAULT_SETTINGS, help="index settings")
    parser.add_argument(
        "--shares", type=float, nargs="+", default=[0.001, 0.003, 0.01, 0.03], help="of the rows, that a query asks for"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(tempfile.gettempdir()) / "torch_lsh_layers",
        help="where trained layers are kept",
    )
    parser.add_argument("--json", help="append the results as JSON lines to this file")
    parser.add_argument("--plot", help="draw a plot into this file")
    arguments = parser.parse_args()
    layers = {name: trained_layer(name, arguments.folder) for name in arguments.layers}
    info = harness.machine(1)
    print(info)
    records = []
    for name, layer in layers.items():
        print(f"\n{name}: {len(layer.weight):,} x {layer.weight.shape[1]}, {len(layer.queries):,} queries")
        measured = measure(name, layer, arguments.settings, arguments.shares)
        columns = ("setting", "share", "returned", *(f"recall@{k}" for k in KS), "us", "build_s", "index_mb")
        print(harness.table([[record.get(column, "") for column in columns] for record in measured], columns))
        records += [{**record, "machine": info} for record in measured]
    harness.write_json(records, arguments.json)
    if arguments.plot:
        plot(records, arguments.plot)


def plot(records: list[dict[str, Any]], path: str) -> None:
    """Draws recall@10 by share of rows returned and, below, by time; a column per layer."""
    layers = [
        [record for record in records if record["layer"] == name]
        for name in dict.fromkeys(record["layer"] for record in records)
    ]
    by_share = [
        functools.partial(_draw, layer, lambda r: r["returned"] / r["rows"], "share of rows") for layer in layers
    ]
    by_time = [functools.partial(_draw, one, lambda r: r["us"], "microseconds per query") for one in layers]
    plots.draw(path, *by_share, *by_time, columns=len(layers))


def draw(axis: Any, records: list[dict[str, Any]]) -> None:
    """recall@10 by time, a line per layer and setting."""
    for layer, setting in dict.fromkeys((record["layer"], record["setting"]) for record in records):
        curve = [record for record in records if (record["layer"], record["setting"]) == (layer, setting)]
        axis.plot([r["us"] for r in curve], [r["recall@10"] for r in curve], "o-", label=f"{layer}, {setting}")
    axis.set(xscale="log", xlabel="microseconds per query", ylabel="recall@10")
    axis.legend(fontsize=7)


def _draw(records: list[dict[str, Any]], x: Callable[[dict[str, Any]], float], label: str, axis: Any) -> None:
    for setting in dict.fromkeys(record["setting"] for record in records):
        curve = [record for record in records if record["setting"] == setting]
        axis.plot([x(r) for r in curve], [r["recall@10"] for r in curve], "o-", label=setting)
    axis.set(xscale="log", xlabel=label, ylabel="recall@10", title=records[0]["layer"])
    axis.legend(fontsize=7)


if __name__ == "__main__":
    main()
