"""Measure, print the table, write the JSON. Exit 0 when it is done, 1 when contestants disagree, 2 for wrong use."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import threadpoolctl
import torch
from rich.console import Console

from benchmarks import machine, report
from benchmarks.contest import FULL, QUICK, DisagreementError
from benchmarks.measure import CASES, QUICK_CASES, measure


def parse(args: Sequence[str] | None) -> argparse.Namespace:
    """The words of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number there")
    parser.add_argument("--quick", action="store_true", help="few calls: checks that contestants agree, times mean little")
    parser.add_argument("--case", action="append", choices=CASES, metavar="NAME", help=f"only these: {', '.join(CASES)}")
    parser.add_argument(
        "--threads", type=int, default=machine.default_threads(), help="of every contestant (default %(default)s)"
    )
    options = parser.parse_args(args)
    if options.threads < 1:
        parser.error(f"--threads must be at least 1; got {options.threads}")
    if options.json and not options.json.absolute().parent.is_dir():
        parser.error(f"--json: {options.json.parent} is not a folder")
    return options


def main(args: Sequence[str] | None = None) -> int:
    """Run it; the exit code."""
    options = parse(args)
    schedule = QUICK if options.quick else FULL
    errors = Console(stderr=True)
    try:
        runs = [run_here(options, errors)]
        if runs[0]["pin"] and not options.quick:
            runs += run_without_pin(options)
    except DisagreementError as disagreement:
        errors.print(f"contestants disagree: {disagreement}", style="red", highlight=False)
        return 1
    done = {
        "format": report.FORMAT,
        "quick": options.quick,
        "schedule": asdict(schedule),
        "machine": machine.describe_machine(options.threads),
        "versions": machine.versions(),
        "runs": runs,
    }
    report.print_report(done, Console(width=report.WIDTH, highlight=False))
    if options.json:
        options.json.write_text(json.dumps(done, indent=1) + "\n", encoding="utf-8")
    return 0


def run_here(options: argparse.Namespace, console: Console) -> report.Json:
    """One pass in this process, with the kernel that the environment leaves OpenBLAS."""
    torch.set_num_threads(options.threads)
    others = machine.Others()
    with threadpoolctl.threadpool_limits(options.threads, user_api="blas"), console.status("") as status:
        cases = options.case or (QUICK_CASES if options.quick else CASES)
        rows = list(measure(cases, QUICK if options.quick else FULL, options.threads, status.update))
        return report.as_run(machine.pin(), machine.kernels(), rows, others.share())


def run_without_pin(options: argparse.Namespace) -> list[report.Json]:
    """The same pass in a new process from whose environment the pin is gone."""
    environment = {name: value for name, value in os.environ.items() if name not in machine.PIN}
    cases = [word for case in options.case or () for word in ("--case", case)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "run.json")
        command = [sys.executable, "-m", "benchmarks", "--json", file, "--threads", str(options.threads), *cases]
        if subprocess.run(command, env=environment, stdout=subprocess.DEVNULL).returncode:
            raise DisagreementError("in the run without the pin; its message is above")
        return list(json.loads(file.read_text(encoding="utf-8"))["runs"])
