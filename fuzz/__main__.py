"""``python fuzz [TARGET ...]``: looks for inputs that break the library. Exit code 1: some were found.

A target is a module with ``make(seed)``, which returns an input, and ``run(*input)``, which says how it ended and
raises what is a failure. Inputs that once failed are kept in ``fuzz/corpus`` and run again by ``--corpus``.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent.parent / "tests"))  # the twins

import children
import torch

TARGETS = ("operators", "readers", "model_files", "http_requests")
CORPUS = Path(__file__).parent / "corpus"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python fuzz", description="Looks for inputs that break the library.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; default: all")
    parser.add_argument("--seconds", type=float, default=60, help="in all (default: %(default)s)")
    parser.add_argument("--cases", type=int, help="of each target at most")
    parser.add_argument("--seed", type=int, help="of the first case; default: by the clock")
    parser.add_argument("--corpus", action="store_true", help="run the inputs that once failed, and no others")
    parser.add_argument("--only", type=int, metavar="SEED", help="run one case in this process, for a debugger")
    parser.add_argument("--keep", metavar="NAME", help="with --only: add the input to the corpus")
    options = parser.parse_args()
    targets = options.targets or list(TARGETS)
    for target in targets:
        if target not in TARGETS:
            parser.error(f"TARGET is {target!r}; wanted {', '.join(TARGETS)}")
    first = time.time_ns() // 10**6 if options.seed is None else options.seed
    failed = 0
    for name in targets:
        if options.corpus and not (CORPUS / name).is_dir():
            continue
        target = importlib.import_module(name)
        if options.only is not None:
            _run_one(name, target, options.only, options.keep)
        elif options.corpus:
            failed += _report(name, _run_corpus(name, target))
        else:
            seconds = options.seconds / len(targets)
            report = children.run(
                lambda seed, target=target: target.run(*target.make(seed)), first, seconds, options.cases
            )
            failed += _report(name, report)
    return int(failed > 0)


def _run_one(name: str, target: Any, seed: int, keep: str | None) -> None:
    made = target.make(seed)
    if keep is not None:
        (CORPUS / name).mkdir(parents=True, exist_ok=True)
        torch.save(list(made), CORPUS / name / keep)
    print(name, seed, target.run(*made))


def _run_corpus(name: str, target: Any) -> children.Report:
    files = sorted((CORPUS / name).glob("*"))

    def case(number: int) -> str:
        try:
            return target.run(*torch.load(files[number], weights_only=True))
        except Exception as error:
            raise AssertionError(f"{files[number]} fails again") from error

    return children.run(case, 0, 60, len(files))


def _report(name: str, report: children.Report) -> int:
    ends = ", ".join(f"{count:,} {end}" for end, count in report.ends.most_common())
    print(f"{name}: {sum(report.ends.values()):,} cases ({ends}), {len(report.failures)} failures", flush=True)
    for failure in report.distinct():
        print(f"\npython fuzz {name} --only {failure.seed}\n{failure.text}", flush=True)
    return len(report.failures)


if __name__ == "__main__":
    sys.exit(main())
