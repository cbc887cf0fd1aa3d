"""Recall of the settings that autotune picks for look-ups, on held-out inputs, and the time of the search.

    python benchmarks/autotune_lookups.py --layers citeulike-t yso-en --json out.jsonl

Layers are the output layers of trained models (benchmarks/trained_layers.py trains them at the first use). Autotune
gets some of the queries; the others are held out. The table shows recall@10 among the active rows of training steps,
for the pick and for LSHConfig().
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from trained_layers import TrainedLayer, trained_layer

from torch_lsh import LSHConfig, LSHLinear, autotune, ops
from torch_lsh.benchmarking import harness
from torch_lsh.sampling.stats import Estimate
from torch_lsh.tuning.steps import Task, simulate_steps

LAYERS = ("yso-en", "citeulike-t", "wikitext-2", "synthetic")
K = 10


@torch.no_grad()
def held_out_recall(layer: TrainedLayer, config: LSHConfig, inputs: int, batch_size: int) -> Estimate:
    if config.active_rows(len(layer.weight)) == len(layer.weight):
        return Estimate(1.0, 0.0)
    known, held = layer.queries[:inputs], layer.queries[inputs:]
    index = config.index.make(*layer.weight.shape, config.seed)
    index.build(layer.weight, layer.bias, known)
    best = ops.linear_topk(held, layer.weight, layer.bias, K)[1]
    task = Task(layer.weight, layer.bias, known, held, best, batch_size)
    return Estimate.of(simulate_steps(index, config, task)[0])


def measure(name: str, layer: TrainedLayer, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    order = torch.randperm(len(layer.queries), generator=torch.Generator().manual_seed(0))
    layer = layer._replace(queries=layer.queries[order].contiguous())
    lsh = LSHLinear(layer.weight.shape[1], layer.weight.shape[0])
    lsh.load_state_dict({"weight": layer.weight, "bias": layer.bias})
    start = time.perf_counter()
    config, table = autotune(
        lsh,
        layer.queries[: arguments.inputs],
        arguments.target,
        k=K,
        batch_size=arguments.batch_size,
        seconds=arguments.seconds,
    )
    seconds = time.perf_counter() - start
    pick = next(trial for trial in table if trial.stage == "steps" and trial.config == config)
    print(
        f"\n{name}: {len(layer.weight):,} x {layer.weight.shape[1]}, {seconds:.1f} s\n{table}\n"
        f"picked: {pick.describe()}"
    )
    records = []
    for title, settings in (("picked", config), ("default", LSHConfig())):
        recall = held_out_recall(layer, settings, arguments.inputs, arguments.batch_size)
        print(f"{title}: recall@{K} of {len(layer.queries) - arguments.inputs} held-out inputs {recall.mean:.3f}")
        records.append(
            {
                "benchmark": "autotune",
                "layer": name,
                "rows": len(layer.weight),
                "setting": title,
                "target": arguments.target,
                "held_out_recall": recall.mean,
                "held_out_error": recall.error,
                **(
                    {"seconds": seconds, "trials": len(table), "step_ms": pick.milliseconds, "config": pick.describe()}
                    if title == "picked"
                    else {}
                ),
            }
        )
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=LAYERS, help="data sets whose layers are used")
    parser.add_argument("--target", type=float, default=0.9, help="recall to reach")
    parser.add_argument("--inputs", type=int, default=512, help="queries that autotune gets")
    parser.add_argument("--batch-size", type=int, default=256, help="samples per step")
    parser.add_argument("--seconds", type=float, default=18.0, help="approximate duration of the search")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(tempfile.gettempdir()) / "torch_lsh_layers",
        help="where trained layers are kept",
    )
    parser.add_argument("--threads", type=int, help="of PyTorch; default: all cores")
    parser.add_argument("--json", help="append the results as JSON lines to this file")
    arguments = parser.parse_args()
    layers = {name: trained_layer(name, arguments.folder) for name in arguments.layers}
    info = harness.machine(arguments.threads)
    print(info)
    records = [record for name, layer in layers.items() for record in measure(name, layer, arguments)]
    harness.write_json([{**record, "machine": info} for record in records], arguments.json)


if __name__ == "__main__":
    main()
