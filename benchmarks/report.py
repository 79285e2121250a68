"""The targets; everything that was measured as one JSON object; and that object as a table in Markdown."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.machine import PIN
from benchmarks.measure import Row
from npembed import FAMILIES


@dataclass(frozen=True)
class Target:
    """Bounds on one number, both included."""

    at_least: float | None = None
    at_most: float | None = None

    def met(self, value: float) -> bool:
        """Whether the value lies within."""
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)

    def __str__(self) -> str:
        bounds = ((sign, bound) for sign, bound in (("≥", self.at_least), ("≤", self.at_most)) if bound is not None)
        return ", ".join(f"{sign} {bound:.3g}" for sign, bound in bounds)


TARGETS = {
    ("seed", "seed-torch"): Target(at_least=1.2),
    ("seed", "onnxruntime"): Target(at_least=1.0),
    ("seed", "product"): Target(at_least=0.80),
    ("many", "product"): Target(at_least=0.80),
    ("many", "onnxruntime"): Target(at_least=1.0),
    ("ragged", "seed-torch"): Target(at_least=5),
    ("ragged", "onnxruntime"): Target(at_least=1.0),
    ("ids", "seed-torch"): Target(at_least=5),
    ("slicing", "pillow"): Target(at_least=0.75),
    ("siglip-pooled", "transformers"): Target(at_least=1.0),
    ("minicpm-4.6-tokens", "transformers"): Target(at_least=1.0),
    ("per-patch", "many / one"): Target(at_least=1 / 1.2, at_most=1.2),
    ("memory", "many"): Target(at_most=64),
    ("memory", "twice / many"): Target(at_most=1.05),
    **{("family-memory", key): Target(at_most=600) for key in FAMILIES},
    ("import", "over numpy"): Target(at_most=25),
    ("import", "SciPy, Pillow"): Target(at_most=0),
}
"""(case, contestant) -> bounds on its time over npembed's; or (case, figure) -> bounds on the figure."""


FORMAT = 1
"""Of the JSON; it changes when a key changes its name or its meaning."""

Json = dict[str, Any]

WIDTH = 160


def as_run(pin: Mapping[str, str], kernels: list[Json], rows: Iterable[Row], others: float | None) -> Json:
    """One pass over the cases. The targets are for an OpenBLAS that chooses its kernel by itself."""
    judged = [_judged(row, {} if pin else TARGETS) for row in rows]
    return {"pin": dict(pin), "kernels": kernels, "others_share": others, "rows": judged}


def _judged(row: Row, targets: Mapping[tuple[str, str], Target]) -> Json:
    """The row, its target and whether it is met: of the ratio, or of the value where there is none."""
    target = targets.get((row.case, row.what))
    met = None if target is None else target.met(row.value if row.ratio is None else row.ratio)
    return asdict(row) | {"target": None if target is None else asdict(target), "met": met}


def print_report(report: Json, console: Console) -> None:
    """The machine, the kernels, the table, and what is not met."""
    machine, rounds = report["machine"], report["schedule"]
    console.print(f"{machine['processor']}, {machine['cores']} cores; {machine['system']}, huge pages: {machine['huge_pages']}")
    console.print(", ".join(f"{name} {number}" for name, number in report["versions"].items()))
    console.print(
        f"{machine['threads']} threads; {rounds['rounds']} rounds of {rounds['calls']} calls, "
        f"{rounds['pause'] * 1e3:.0f} ms of quiet before each contestant's turn"
    )
    for run in report["runs"]:
        used = ", ".join(f"{each['owner']}: {each['blas']}, {each['kernel']}" for each in run["kernels"])
        console.print(f"\n{_pin_words(run['pin'])}: {used}")
        if run["others_share"] is not None:
            console.print(f"other programs had {run['others_share']:.0%} of the processors' time meanwhile")
    console.print()
    console.print(table(report["runs"]))
    missed = [f"{row['case']} {row['what']}" for run in report["runs"] for row in run["rows"] if row["met"] is False]
    if missed:
        console.print(f"\nnot met: {'; '.join(missed)}")


def _pin_words(pin: Mapping[str, str]) -> str:
    if not pin:
        return f"OpenBLAS chooses its kernel ({' and '.join(PIN)} are not set)"
    return "As found, OpenBLAS pinned by " + " ".join(f"{name}={value}" for name, value in pin.items())


def table(runs: Iterable[Json]) -> Table:
    """A line per row. Over npembed's time: above 1, npembed is faster; over the product's: what could be reached."""
    shown = Table(box=box.MARKDOWN)
    for name in ("case", "contestant", "OpenBLAS kernel"):
        shown.add_column(name, no_wrap=True)
    for name in ("median", "quartiles", "/ npembed", "/ product", "target", "met"):
        shown.add_column(name, justify="right", no_wrap=True)
    for run in runs:
        kernel = next((each["kernel"] for each in run["kernels"] if each["owner"] == "numpy"), "unknown")
        for row in run["rows"]:
            shown.add_row(row["case"], row["what"], kernel + (" (pinned)" if run["pin"] else ""), *_cells(row))
    return shown


def _cells(row: Json) -> tuple[str, ...]:
    quartiles = "" if row["lower"] is None else f"{row['lower']:.4g} … {row['upper']:.4g}"
    ratio, ceiling = ("" if row[key] is None else f"{row[key]:.2f}" for key in ("ratio", "ceiling"))
    target = "" if row["target"] is None else str(Target(**row["target"]))
    met = "" if row["met"] is None else "yes" if row["met"] else "no"
    return f"{row['value']:.4g} {row['unit']}".rstrip(), quartiles, ratio, ceiling, target, met
