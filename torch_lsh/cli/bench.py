"""The command ``bench``."""

from __future__ import annotations

import argparse

from ..benchmarking.overview import overview
from ..plots import check_can_draw
from .arguments import positive


def bench_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rows", type=positive, default=670_091, help="outputs of the layer")
    parser.add_argument("--width", type=positive, default=128, help="inputs of the layer")
    parser.add_argument("--batch", type=positive, default=256, help="samples per step")
    parser.add_argument("--active", type=positive, default=8192, help="active rows per step")
    parser.add_argument("--rounds", type=positive, default=5, help="steps of each system")
    parser.add_argument("--plot", help="file for a plot of the result (needs matplotlib)")


def bench(arguments: argparse.Namespace) -> int:
    if arguments.plot is not None:
        check_can_draw(arguments.plot)
    overview(
        rows=arguments.rows,
        width=arguments.width,
        batch=arguments.batch,
        active=arguments.active,
        rounds=arguments.rounds,
        threads=arguments.threads,
        plot=arguments.plot,
    )
    return 0
