"""What the numbers should be, with OpenBLAS free to choose its kernel."""

from dataclasses import dataclass


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
    ("seed", "seed-torch"): Target(at_least=2.7),
    ("seed", "minicpm-4.6"): Target(at_least=2.3),
    ("seed", "onnxruntime"): Target(at_least=1.05),
    ("seed", "product"): Target(at_least=0.80),
    ("many", "product"): Target(at_least=0.85),
    ("ragged", "seed-torch"): Target(at_least=10),
    ("ragged", "onnxruntime"): Target(at_least=3.7),
    ("ids", "seed-torch"): Target(at_least=10),
    ("slicing", "pillow"): Target(at_least=0.75),
    ("encoder", "torch-layers"): Target(at_least=1.5),
    ("per-patch", "many / one"): Target(at_least=1 / 1.2, at_most=1.2),
    ("memory", "many"): Target(at_most=64),
    ("memory", "twice / many"): Target(at_most=1.01),
    ("import", "over numpy"): Target(at_most=25),
    ("import", "SciPy, Pillow"): Target(at_most=0),
}
"""(case, contestant) -> bounds on its time over npembed's; or (case, figure) -> bounds on the figure."""
