"""`python -m tests.fuzz --seed S --count N [--only NUMBER] [--kinds KIND ...]`, or with `--upstream` or `--kills N` instead."""

import os

for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):  # before NumPy: a child of a process with
    os.environ[threads] = "1"  # threads has none of them, only their locks

# ruff: noqa: E402
import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from tests.fuzz import kills, originals, runner
from tests.fuzz.kinds import KINDS


def main() -> int:
    """Run the cases, or the kills; exit 1 if anything is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--only", type=int, help="the number of one case")
    parser.add_argument("--kinds", nargs="+", choices=[make.__name__ for make in KINDS], help="of input; all by default")
    parser.add_argument("--upstream", action="store_true", help="random models and pictures beside transformers")
    parser.add_argument("--kills", type=int, help="so many of each signal, in place of the cases")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--folder", type=Path, help="for the cases with a fault; a new one by default")
    options = parser.parse_args()
    if options.upstream:
        return beside_upstream(options)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="npembed-fuzz-"))
    folder.mkdir(parents=True, exist_ok=True)
    made = originals.make(Path(tempfile.mkdtemp(prefix="npembed-fuzz-originals-")))
    try:
        if options.kills is not None:
            return kills.main(options.kills, options.seed, folder, made)
        return fuzz(options, folder, made)
    finally:
        shutil.rmtree(made.folder, ignore_errors=True)
        if not any(folder.iterdir()):
            folder.rmdir()


def beside_upstream(options: argparse.Namespace) -> int:
    """Compare with transformers."""
    from tests.fuzz import upstream  # which imports torch, whose threads no fork of a case may have

    count = 0
    for line in upstream.faults(options.seed, range(options.count) if options.only is None else [options.only]):
        print(line, flush=True)
        count += 1
    print(f"{count} faults")
    return bool(count)


def fuzz(options: argparse.Namespace, folder: Path, made: originals.Originals) -> int:
    """Run the cases."""
    clean = runner.clean_memory(made, folder)
    numbers = range(options.count) if options.only is None else [options.only]
    kinds = {make: share for make, share in KINDS.items() if options.kinds is None or make.__name__ in options.kinds}
    ends = runner.run(numbers, options.seed, folder, made, kinds, jobs=options.jobs, clean=clean)
    total = runner.count(ends, lambda line: print(line, flush=True))
    codes = ", ".join(f"{number} with exit code {code}" for code, number in sorted(total.codes.items()))
    kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(total.kinds.items()))
    over = max(0, total.memory - clean) / 1e6
    print(f"seed {options.seed}: {sum(total.codes.values())} cases ({kinds}): {codes}; at most {over:.0f} MB over a clean run")
    print(f"{len(total.faults)} faults")
    return bool(total.faults)


if __name__ == "__main__":
    sys.exit(main())
