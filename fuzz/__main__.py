"""``python fuzz [TARGET ...]``: looks for inputs that break the library. Exit code 1: some were found."""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "tests"))  # the twins

import children  # noqa: E402

TARGETS = ("operators", "readers", "model_files", "http_requests")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; default: all")
    parser.add_argument("--seconds", type=float, default=60, help="in all (default: %(default)s)")
    parser.add_argument("--cases", type=int, help="of each target at most")
    parser.add_argument("--seed", type=int, help="of the first case; default: by the clock")
    parser.add_argument("--only", type=int, help="run this one case in this process: what a failure is debugged with")
    options = parser.parse_args()
    targets = options.targets or list(TARGETS)
    for target in targets:
        if target not in TARGETS:
            parser.error(f"TARGET is {target!r}; wanted {', '.join(TARGETS)}")
    first = time.time_ns() // 10**6 if options.seed is None else options.seed
    failed = 0
    for target in targets:
        case = importlib.import_module(target).case
        if options.only is not None:
            print(target, options.only, case(options.only))
            continue
        report = children.run(case, first, options.seconds / len(targets), options.cases)
        ends = ", ".join(f"{count:,} {name}" for name, count in report.ends.most_common())
        print(f"{target}: {sum(report.ends.values()):,} cases ({ends}), {len(report.failures)} failures", flush=True)
        for failure in report.distinct():
            print(f"\npython fuzz {target} --only {failure.seed}\n{failure.text}", flush=True)
        failed += len(report.failures)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
