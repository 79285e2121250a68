"""The kit's report as a page: a matrix of stages and cases, the first departure, and a picture of where the arrays differ."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from npembed.conformance.golden import Pack, tried_in
from npembed.conformance.outcome import SEPARATOR, Outcome, Status, unjudged
from npembed.conformance.results import Results
from npembed.families import FAMILIES
from npembed.pages.drawing import packed
from npembed.pages.page import render
from npembed.records.model import Model
from npembed.steps.patches import strip_to_picture
from npembed.support.typing import Array, Floats, Ids

PIXELS = ("pixel_values", "sliced_strips", "pad_pixel_values", "slice_image")
"""Stages and functions whose arrays are pictures."""

STANDS_FOR = {"strips.*": "sliced_strips", "tgt_sizes": "sliced_tgt_sizes", "vision_tokens": "tokens"}
"""Inputs of stages that hold what an earlier stage gives."""

PLACELESS = ("tokens", "pooled", "frame_tokens", "masked_position_ids")
"""Stages whose places are not the patches of a slice, row by row."""

MAX_VALUES = 300_000
"""Of an array that is drawn, at most."""

CELLS = {"pass": "✓", "fail": "✗", "follows": "↳", "not provided": "·", "known departure": "≈", "not judged": "?"}
"""How the matrix marks what became of a stage in a case."""

WORDS = {
    "pass": "passes",
    "fail": "departs",
    "follows": "departs, and may follow from an earlier departure",
    "not provided": "not provided",
    "known departure": "departs as expected",
}


def report_page(outcomes: Sequence[Outcome], verdict: str, subject: str, results: Mapping[str, Results] | None = None) -> str:
    """The page, as text of one HTML file.

    Parameters
    ----------
    outcomes : sequence of Outcome
        Of a golden pack, named "case / stage", or of functions.
    verdict, subject : str
    results : mapping of str to Results, optional
        By the names of outcomes, beside those that outcomes hold; those of failures are drawn.
    """
    golden = bool(outcomes) and all(SEPARATOR in outcome.name for outcome in outcomes)
    kinds = kinds_of(outcomes)
    failures = [list(group) for group in by_stage(outcomes, kinds)] if golden else [[each] for each in _failing(outcomes)]
    failures.sort(key=lambda group: kinds[group[0].name] == "follows")
    drawn = {outcome.name: outcome.results for outcome in outcomes if outcome.results is not None} | dict(results or {})
    pictures = {name: panels(name.rpartition(SEPARATOR)[2], drawn[name]) for name in _names(failures) if name in drawn}
    return render(
        "report.html.j2",
        ("base.js", "report.js"),
        data={name: found for name, found in pictures.items() if found},
        title=f"npembed: {subject}",
        verdict=verdict,
        wrong=bool(_failing(outcomes)),
        unread=unjudged(outcomes),
        matrix=matrix(outcomes, kinds) if golden else None,
        cases=list(dict.fromkeys(outcome.name.partition(SEPARATOR)[0] for outcome in outcomes)),
        failures=[(group[0], group[1:], kinds[group[0].name]) for group in failures],
        pictured={name for name, found in pictures.items() if found},
        others=[each for each in outcomes if each.status is Status.KNOWN or (not golden and each.status is not Status.FAIL)],
        kinds=kinds,
        cells=CELLS,
        words=WORDS,
        anchors={outcome.name: f"f{number}" for number, outcome in enumerate(outcomes)},
    )


def _failing(outcomes: Sequence[Outcome]) -> list[Outcome]:
    return [outcome for outcome in outcomes if outcome.status is Status.FAIL]


def _names(failures: Sequence[Sequence[Outcome]]) -> Iterator[str]:
    """Those that are shown in full: the first of each group."""
    return (group[0].name for group in failures)


def kinds_of(outcomes: Sequence[Outcome]) -> dict[str, str]:
    """Outcome's name -> a key of `CELLS`: its status, or "follows" for a failure that depends on another of the same case."""
    found: dict[str, str] = {}
    departed: dict[str, set[str]] = {}
    for outcome in outcomes:
        case, separator, stage = outcome.name.partition(SEPARATOR)
        found[outcome.name] = outcome.status.value
        if outcome.status is Status.FAIL and separator:
            before = departed.setdefault(case, set())
            found[outcome.name] = "follows" if before & depends_on(stage) else "fail"
            before.add(stage)
    return found


@cache
def depends_on(stage: str) -> frozenset[str]:
    """The stages whose results a stage of that name needs in any family, directly or through others.

    Examples
    --------
    >>> sorted(depends_on("position_ids")), "position_ids" in depends_on("tokens")
    (['sliced_tgt_sizes'], True)
    """
    reads = {name for family in FAMILIES.values() for each in family.stages if each.name == stage for name in each.reads}
    direct = {STANDS_FOR.get(name, name) for name in reads} | ({"position_ids"} if stage == "embeddings" else set())
    known = {each.name for family in FAMILIES.values() for each in family.stages}
    direct = (direct & known) - {stage}
    return frozenset(direct).union(*(depends_on(name) for name in direct))


def by_stage(outcomes: Sequence[Outcome], kinds: Mapping[str, str]) -> Iterator[list[Outcome]]:
    """The failures of each stage, in order of stages; those that follow from nothing first."""
    for stage in dict.fromkeys(outcome.name.partition(SEPARATOR)[2] for outcome in outcomes):
        group = [each for each in _failing(outcomes) if each.name.partition(SEPARATOR)[2] == stage]
        if group:
            yield sorted(group, key=lambda each: kinds[each.name] == "follows")


def matrix(outcomes: Sequence[Outcome], kinds: Mapping[str, str]) -> dict[str, dict[str, Outcome]]:
    """Stage -> case -> its outcome."""
    found: dict[str, dict[str, Outcome]] = {}
    for outcome in outcomes:
        case, _, stage = outcome.name.partition(SEPARATOR)
        found.setdefault(stage, {})[case] = outcome
    return found


def panels(stage: str, results: Results) -> list[dict[str, Any]]:
    """The pictures of one failure: of pixels both and the difference, of ids both and where they differ, of floats the error.

    The error of floats is in units of the allowed one, the largest of each place's channels. Empty where the shapes differ or
    nothing would be seen.
    """
    came, expected = results.came, results.expected
    if came.shape != expected.shape or (came.dtype.kind not in "biuf" and came.dtype.name != "bfloat16") or not came.ndim:
        return []
    wrong = error_units(came, expected, results.allowed)
    number = int(np.argwhere(wrong > 1)[0][0]) if (wrong > 1).any() else 0
    if stage in PIXELS:
        return _pictures(results, wrong)
    size = None if results.sizes is None or number >= len(results.sizes) else tuple(results.sizes[number].tolist())
    where = "" if came.ndim == 1 else f", {'slice' if size or came.ndim > 2 else 'row'} {results.first + number}"
    if results.allowed is None:
        rows = [("came", came), ("expected", expected), ("where they differ", wrong > 1)]
        return _folded([(f"{title}{where}", _row(array, number)) for title, array in rows], size)
    if wrong.ndim == 3 and wrong.shape[1] == 1:  # one place: its channels
        return _folded([(f"the error of each channel, in units of the allowed{where}", wrong[number, 0])], None)
    worst = wrong.max(axis=-1) if wrong.ndim > 2 else wrong
    return _folded([(f"the error, in units of the allowed{where}", _row(worst, number))], size)


def error_units(came: Array, expected: Array, allowed: Array | None) -> Floats:
    """The distance in units of the allowed one; where the two must be equal, 0 or 2. NaN counts as the largest there is."""
    if allowed is None:
        return np.where(came != expected, 2.0, 0.0)
    distance = np.abs(came.astype(np.float64) - expected.astype(np.float64))
    with np.errstate(divide="ignore", invalid="ignore"):
        units = np.where(distance == 0, 0.0, distance / np.broadcast_to(allowed, came.shape))
    finite = units[np.isfinite(units)]
    return np.where(np.isfinite(units), units, max(2.0, float(finite.max()) if finite.size else 2.0))


def _row(array: Array, number: int) -> Array:
    """(B, ..., L) -> (L,): one result's places; an array of one axis as it is."""
    return array if array.ndim == 1 else array[number].reshape(-1)


def _folded(rows: Sequence[tuple[str, Array]], size: tuple[int, ...] | None) -> list[dict[str, Any]]:
    """Rows of places -> panels, in the slice's rows and columns where they are known."""
    found = []
    for title, values in rows:
        h, w = size if size and size[0] * size[1] <= len(values) else (1, len(values))
        if h * w > MAX_VALUES or h * w < 2:
            return []
        found.append(_panel(title, h, w, values[: h * w]))
    return _scaled(found)


def _panel(title: str, rows: int, columns: int, values: Array) -> dict[str, Any]:
    return {"title": title, "rows": rows, "columns": columns, "numbers": values.astype(np.float64).ravel()}


def _scaled(panels: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The panels, packed: what came and what was expected on one scale, a difference or an error from 0 on."""
    both = [panel["numbers"] for panel in panels[:-1]]
    for panel in panels:
        numbers, own = panel.pop("numbers"), panel is panels[-1]
        known = [numbers] if own else both
        panel["values"] = packed(numbers)["float32"]
        panel["least"] = 0.0 if own else min(float(np.nanmin(each)) for each in known)
        panel["most"] = max(float(np.nanmax(each)) for each in known)
    return panels


def _pictures(results: Results, wrong: Floats) -> list[dict[str, Any]]:
    """Strips -> the first slice that differs: both as pictures, the means of channels, and a channel's largest difference."""
    came, expected, sizes = results.came, results.expected, results.sizes
    if sizes is None or came.ndim not in (3, 4):
        return []
    side, first = came.shape[-2], np.argwhere(wrong > 1)
    starts = np.concatenate([[0], np.cumsum(sizes.prod(axis=1) * side)])
    at = first[0].tolist() if len(first) else [0] * came.ndim
    number = at[0] if came.ndim == 4 else int(np.searchsorted(starts, at[-1], side="right")) - 1  # strips laid end to end
    if number >= len(sizes):
        return []
    h, w = sizes[number].tolist()
    columns = slice(0, h * w * side) if came.ndim == 4 else slice(starts[number], starts[number + 1])
    strips = [(array[number] if came.ndim == 4 else array)[:, :, columns].astype(np.float64) for array in (came, expected)]
    if strips[0].shape[-1] != h * w * side or h * w * side * side > MAX_VALUES:
        return []
    one, other = (strip_to_picture(strip, (h, w)) for strip in strips)
    shown = [("came", one.mean(axis=0)), ("expected", other.mean(axis=0)), ("the difference", np.abs(one - other).max(axis=0))]
    where = f"slice {results.first + number}"
    return _scaled([_panel(f"{title}, {where}", h * side, w * side, values) for title, values in shown])


def golden_results(
    pack: Pack,
    outputs: Path,
    outcomes: Sequence[Outcome],
    precision: str | None = None,
    rule: str | None = None,
    model: Model | None = None,
) -> dict[str, Results]:
    """The arrays of the failures that a page shows in full, read again from the pack and the port's files."""
    found = {}
    for group in by_stage(outcomes, kinds_of(outcomes)):
        name, stage = group[0].name, group[0].name.partition(SEPARATOR)[2]
        tried = tried_in(pack, outputs, name, precision, rule, model)
        if tried is not None:
            counts = None if tried.places is None else tried.places.sum(axis=1)
            allowed = tried.allowed(tried.precision)
            found[name] = Results(tried.came, tried.expected, allowed, sizes_of(stage, tried.given.values, counts))
    return found


def sizes_of(stage: str, values: Mapping[str, Any], counts: Ids | None) -> Ids | None:
    """The rows and columns of a stage's places, if the case's own arrays say them and they make as many places as it has."""
    own = {"sliced_strips": ("sliced_tgt_sizes",), "hidden": ("hidden.hidden_sizes", "tgt_sizes")}.get(stage, ("tgt_sizes",))
    sizes = next((np.asarray(values[name]) for name in own if name in values), None)
    if sizes is None or stage in PLACELESS:
        return None
    return None if counts is not None and not np.array_equal(sizes.prod(axis=1), counts) else sizes
