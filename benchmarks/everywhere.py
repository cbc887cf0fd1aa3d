"""A training step in every way that PyTorch offers, beside nn.Linear's in the same way and beside the eager loop.

    python benchmarks/everywhere.py --json out.jsonl
    python benchmarks/everywhere.py --ways eager compiled lightning

Each way takes turns with the eager loop, a step of the one and a step of the other. Processes do not: there the eager
loop runs before and after. The ways of a language model are compared with the eager loop of that model. Processes share
the cores and the batch; bytes are those that a process sends per step, counted on the loopback interface, over which
nothing else may run. "CPU" is the CPU time of a step, of all processes together.

Beside processes: "at once", eager steps of as many processes, each on its part of the batch, without any exchange; and
"exchange", the messages of a step alone, in the same processes, without any computation. "Without exchange" is how many
eager steps the rest of a step takes. More processes than cores wait for each other, and no step takes less time than
its CPU time divided by the cores: "times eager" and "without exchange" are then ratios of CPU times, marked with an
asterisk.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import ways_of_training as ways
from ways_in_processes import in_processes
from ways_of_training import Setting, silence

from torch_lsh import plots
from torch_lsh.benchmarking import harness


class Way(NamedTuple):
    train: Callable[[Setting], None] | str  # a function, or the name of one of ways_in_processes.py
    processes: int = 1
    beside: Callable[[Setting], Callable[[], None]] = ways.eager_step


WAYS = {
    "eager": Way(ways.eager),
    "bfloat16 autocast": Way(ways.autocast),
    "bfloat16 weights": Way(ways.bfloat16_weights),
    "functional": Way(ways.functional),
    "tied embedding": Way(ways.tied),
    "compiled, loss outside": Way(ways.compiled),
    "compiled, loss inside": Way(ways.compiled_with_loss),
    "compiled, fullgraph": Way(ways.compiled_whole),
    "Lightning": Way(ways.lightning),
    "accelerate": Way(ways.accelerate),
    "Trainer": Way(ways.trainer),
    "Trainer, GPT-2": Way(ways.trainer_language_model, beside=ways.language_model_step),
    "trl SFTTrainer, GPT-2": Way(ways.sft_trainer, beside=ways.language_model_step),
    "DDP x 2": Way("ddp", 2),
    "FSDP2 x 2": Way("fsdp", 2),
    "row-sharded x 2": Way("sharded", 2),
    "row-sharded x 4": Way("sharded", 4),
}


# Columns, and what in_processes calls them.
OF_PROCESSES = {"at_once_ms": "at_once", "exchange_ms": "exchange", "exchange_cpu_ms": "exchange_cpu"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", metavar="WORD", help="those whose names contain one of the words")
    parser.add_argument("--rows", type=int, default=200_000, help="outputs of the layer")
    parser.add_argument("--width", type=int, default=128, help="features of an input")
    parser.add_argument("--batch", type=int, default=256, help="samples per step, of all processes")
    parser.add_argument("--active", type=int, default=8192, help="active rows per step")
    parser.add_argument("--steps", type=int, default=40, help="of the sampled layer")
    parser.add_argument("--dense-steps", type=int, default=5, help="of nn.Linear; 0: leave it out")
    parser.add_argument("--threads", type=int, help="of PyTorch; default: all cores")
    parser.add_argument("--json", help="append the results as JSON lines to this file")
    parser.add_argument("--plot", help="draw a plot into this file")
    arguments = parser.parse_args()
    info = harness.machine(arguments.threads)
    size = {name: getattr(arguments, name) for name in ("rows", "width", "batch", "active")}
    print(info)
    print("{rows:,} x {width}, batch {batch}, {active:,} active rows, Adam".format(**size))
    records = []
    for name, way in WAYS.items():
        if arguments.ways is None or any(word.lower() in name.lower() for word in arguments.ways):
            found = compare(way, size, arguments.steps, arguments.dense_steps)
            records.append({"benchmark": "everywhere", "way": name, **size, **found, "machine": info})
            harness.write_json(records[-1:], arguments.json)
            print(f"{name}: {found.get('skipped', 'measured')}", flush=True)
    print(table(records))
    if arguments.plot:
        plots.draw(arguments.plot, lambda axis: draw(axis, records))


def compare(way: Way, size: dict[str, int], steps: int, dense_steps: int) -> dict[str, Any]:
    """One row of the table; the reason where the way cannot run here."""
    try:
        ours = run(way, size, steps)
        dense = run(way, size, dense_steps, lsh=False) if dense_steps else None
    except ImportError as error:
        return {"skipped": f"skipped: {error}"}
    eager, cpu = statistics.median(ours["eager"]) * 1e3, statistics.mean(ours["cpu"]) * 1e3
    milliseconds = harness.summary(ours["seconds"])
    of_processes = {name: statistics.median(ours[key]) * 1e3 for name, key in OF_PROCESSES.items() if key in ours}
    by_cpu = way.processes > (os.cpu_count() or 1)
    step, eager_step = (cpu, ours["eager_cpu"] * 1e3) if by_cpu else (milliseconds["median_ms"], eager)
    exchange = of_processes.get("exchange_cpu_ms" if by_cpu else "exchange_ms")
    return {
        **milliseconds,
        "dense_ms": statistics.median(dense["seconds"]) * 1e3 if dense else None,
        "eager_ms": eager,
        "cpu_ms": cpu,
        "eager_cpu_ms": ours["eager_cpu"] * 1e3,
        "times_eager": step / eager_step,
        "without_exchange": None if exchange is None else (step - exchange) / eager_step,
        "by_cpu": by_cpu,
        "path": ours["path"],
        "gradient": str(ours["layout"]).removeprefix("torch."),
        **of_processes,
        "sent_mb": statistics.median(ours["sent"]) / 1e6 if way.processes > 1 else 0.0,
        "dense_sent_mb": statistics.median(dense["sent"]) / 1e6 if dense and way.processes > 1 else 0.0,
    }


def run(way: Way, size: dict[str, int], steps: int, lsh: bool = True) -> dict[str, Any]:
    """Seconds of the way's steps and of the eager ones, bytes, path, layout of the gradient."""
    options = {**size, "steps": steps, "lsh": lsh, "processes": way.processes}
    gc.collect()
    torch._dynamo.reset()
    with silence():
        eager = way.beside(Setting(**size, steps=steps)) if lsh else lambda: None
    if isinstance(way.train, str):
        before, cpu_before = _in_a_row(eager, steps)
        found = in_processes(way.train, options)
        after, cpu_after = _in_a_row(eager, steps)
        return {**found, "eager": before + after, "eager_cpu": (cpu_before + cpu_after) / 2}
    threads, setting = torch.get_num_threads(), Setting(**options)
    setting.batches.other = eager
    with silence():
        way.train(setting)
    torch.set_num_threads(threads)
    spent, (_, eager_cpu) = setting.batches.spent(), _in_a_row(eager, steps)
    found = {"seconds": spent.seconds, "eager": spent.of_other, "cpu": spent.cpu, "eager_cpu": eager_cpu}
    return {**found, "sent": spent.sent, "layout": setting.layout, "path": setting.path}


def _in_a_row(step: Callable[[], None], steps: int) -> tuple[list[float], float]:
    """Seconds of each step, and CPU seconds of one."""
    harness.in_turn({"": step}, 2)
    start = time.process_time()
    seconds = harness.in_turn({"": step}, steps, warm_up=0)[""]
    return seconds, (time.process_time() - start) / steps


def table(records: list[dict[str, Any]]) -> str:
    columns = ("dense_ms", "median_ms", "min_ms", "max_ms", "eager_ms", "times_eager", "cpu_ms", "eager_cpu_ms")
    columns += (*OF_PROCESSES, "without_exchange", "path", "gradient", "sent_mb")
    header = ("way", "nn.Linear ms", "ms", "min", "max", "eager ms", "times eager", "CPU ms", "eager CPU ms")
    header += ("at once ms", "exchange ms", "exchange CPU ms", "without exchange", "path", "gradient", "MB sent")
    found = [{**record, **ratios(record)} for record in records if "skipped" not in record]
    return harness.table([[record["way"], *(record.get(name) for name in columns)] for record in found], header)


def ratios(record: dict[str, Any]) -> dict[str, str]:
    """The multiples of an eager step, with an asterisk where they are ratios of CPU times."""
    names = [name for name in ("times_eager", "without_exchange") if record.get(name) is not None]
    return {name: f"{record[name]:.3g}{'*' if record['by_cpu'] else ''}" for name in names}


def draw(axis: Any, records: list[dict[str, Any]]) -> None:
    """Milliseconds per step, two bars per way."""
    found = [record for record in records if "skipped" not in record][::-1]
    places = torch.arange(len(found))
    axis.barh(places + 0.2, [record["dense_ms"] or 0 for record in found], 0.4, label="nn.Linear", color="0.7")
    axis.barh(places - 0.2, [record["median_ms"] for record in found], 0.4, label="torch_lsh", color="tab:blue")
    axis.set_yticks(places, [record["way"] for record in found])
    axis.set(xscale="log", xlabel="milliseconds per training step")
    axis.legend()


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
