"""What the numbers were measured on: processor, versions, and the kernel that each BLAS runs."""

import os
import platform
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import threadpoolctl
import torch

PIN = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
"""Environment variables that hold OpenBLAS to a kernel other than the one it would choose."""

PACKAGES = ("npembed", "numpy", "scipy", "Pillow", "torch", "transformers", "onnxruntime", "onnx")

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def pin() -> dict[str, str]:
    """The variables of `PIN` that are set."""
    return {name: os.environ[name] for name in PIN if name in os.environ}


def default_threads() -> int:
    """2, or the cores that this process may use if they are fewer."""
    return min(2, cores())


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_machine(threads: int) -> dict[str, Any]:
    """Processor, cores, threads of every contestant, system, and whether it backs large arrays with huge pages."""
    return {
        "processor": _processor(),
        "cores": cores(),
        "threads": threads,
        "system": f"{platform.system()} {platform.machine()}",
        "huge_pages": _huge_pages(),
    }


def _processor() -> str:
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def _huge_pages() -> str | None:
    """Linux: always, madvise (NumPy asks for them, torch and ONNX Runtime don't) or never."""
    try:
        found = re.search(r"\[(\w+)\]", HUGE_PAGES.read_text(encoding="utf-8"))
    except OSError:
        return None
    return found[1] if found else None


class Others:
    """How much of the processors' time goes to other programs; from 0 to 1, or None where the system doesn't tell."""

    def __init__(self) -> None:
        self._start = self._ticks()

    @staticmethod
    def _ticks() -> tuple[float, float, float] | None:
        """Seconds since the start that all processors had, that they were busy, and that this program took of them."""
        try:
            words = Path("/proc/stat").read_text(encoding="utf-8").split(maxsplit=9)[1:9]
        except OSError:
            return None
        seconds = [int(word) / os.sysconf("SC_CLK_TCK") for word in words]
        return sum(seconds), sum(seconds) - seconds[3] - seconds[4], sum(os.times()[:4])

    def share(self) -> float | None:
        """Since this object was made."""
        now = self._ticks()
        if self._start is None or now is None:
            return None
        whole, busy, ours = (after - before for before, after in zip(self._start, now, strict=True))
        return max(busy - ours, 0.0) / whole if whole else 0.0


def versions() -> dict[str, str]:
    """Python's and each package's."""
    return {"Python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def kernels() -> list[dict[str, Any]]:
    """Per library that multiplies matrices: what does it there, which kernel it runs, with how many threads."""
    found = []
    for library in threadpoolctl.threadpool_info():
        if library["user_api"] == "blas":
            owner = Path(library["filepath"]).parent.name.removesuffix(".libs")
            blas = f"{library['internal_api']} {library['version']}"
            found.append(_kernel(owner, blas, library.get("architecture", "unknown"), library["num_threads"]))
    capability = torch.backends.cpu.get_cpu_capability()
    mkl = "MKL and " if torch.backends.mkl.is_available() else ""
    return [*found, _kernel("torch", f"{mkl}oneDNN", capability, torch.get_num_threads())]


def _kernel(owner: str, blas: str, kernel: str, threads: int) -> dict[str, Any]:
    return {"owner": owner, "blas": blas, "kernel": kernel, "threads": threads}
