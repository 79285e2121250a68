"""A test that needs a package which is not there is skipped, and the end says which extras would run more.

Only what is really absent counts: where everything is installed, nothing is skipped for this reason.
"""

import re
import sys
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest

BROUGHT_BY = {
    "image": ("PIL",),
    "weights": ("safetensors", "ml_dtypes"),
    "cli": ("typer", "rich"),
    "pages": ("jinja2",),
    "gguf": ("gguf",),
    "hub": ("huggingface_hub",),
    "url": ("fsspec",),
    "corpus": ("dask", "distributed", "pyarrow", "psutil"),
    "dev": ("torch", "transformers", "onnx", "onnxruntime", "threadpoolctl", "playwright", "jsonschema", "duckdb", "pandas"),
}
"""Extra -> the packages that tests import."""


def _is_absent(name: str) -> bool:
    try:
        return find_spec(name) is None
    except ImportError:
        return True


ABSENT = {name: extra for extra, names in BROUGHT_BY.items() for name in names if _is_absent(name)}
REASON = "needs the extra "


def wanted(error: BaseException | None) -> str | None:
    """The extra for want of which this was raised."""
    for each in _chain(error):
        if isinstance(each, ModuleNotFoundError) and (each.name or "").partition(".")[0] in ABSENT:
            return ABSENT[str(each.name).partition(".")[0]]
        said = re.search(r"npembed\[(\w+)\]", str(each)) if isinstance(each, ImportError) else None
        if said and said[1] in ABSENT.values():
            return said[1]
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, those that it came from, and what a doctest met."""
    while error is not None:
        yield error
        for failure in getattr(error, "failures", []):  # of a whole doctest
            yield from _chain(failure)
        if hasattr(error, "exc_info"):
            yield from _chain(error.exc_info[1])
        error = error.__cause__ or error.__context__


def _skip(report: Any, node: Any, call: Any) -> None:
    extra = wanted(call.excinfo.value) if ABSENT and call is not None and call.excinfo is not None else None
    if report.failed and extra is not None:
        report.outcome, report.longrepr = "skipped", (str(node.path), 0, f"{REASON}{extra}")


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    """A module that cannot be imported."""
    report: Any = yield
    _skip(report, collector, getattr(report, "call", None))
    if report.skipped:  # pytest leaves it half imported, which is what others would get
        half = [name for name, module in sys.modules.items() if getattr(module, "__file__", None) == str(collector.path)]
        for name in half:
            del sys.modules[name]
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """A test, or a fixture of it."""
    report: Any = yield
    _skip(report, item, call)
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """A line for each extra."""
    files: dict[str, set[str]] = {}
    tests: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        _, mark, extra = str(report.longrepr[-1] if isinstance(report.longrepr, tuple) else "").partition(REASON)
        if mark and report.when == "collect":
            files.setdefault(extra, set()).add(report.longrepr[0])
        elif mark:
            tests[extra] += 1
    for extra in sorted({*files, *tests}):
        what = f"{len(files.get(extra, ()))} files and {tests[extra]} tests of others"
        terminalreporter.write_line(f"not run: {what} that need pip install 'npembed[{extra}]'")
