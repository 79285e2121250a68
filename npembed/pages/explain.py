"""`npembed explain`: one picture's way to its embeddings, step by step, on one page."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import npembed
from npembed.families import get_family
from npembed.pages.drawing import EXACT_BYTES, picture_uri, slice_pictures
from npembed.pages.page import render
from npembed.pages.rulers import edges_of, ruler
from npembed.pages.seen import seen
from npembed.pages.steps import Subject, code_lines, first_patch, joins, shapes, size_rows, slice_names
from npembed.records.config import FamilyConfig
from npembed.records.family import Slices
from npembed.steps.pixels.strips import as_rgb
from npembed.steps.positions import RULES, bucket_coords
from npembed.steps.positions.differences import differing
from npembed.steps.positions.rules import get_rule
from npembed.support.typing import Ids

SAMPLE = Path(npembed.__file__).with_name("data") / "sample.png"


def explain(subject: Subject) -> str:
    """The page, as text of one HTML file."""
    subject = _with_rule(subject)
    slices = subject.family.cut(subject.picture, subject.config)
    ids = ids_by_rule(subject, slices)
    data = page_data(subject, slices, ids)
    return render(
        "explain.html.j2",
        ("base.js", "rulers.js", "explain.js"),
        data=data,
        subject=subject,
        family=subject.family,
        title=f"{subject.name or 'The sample picture'} through {subject.family.title}",
        sizes=size_rows(subject, slices),
        slices=slices,
        code=code_lines(subject, slices, data["places"][data["first"][0]]["lengths"] if data["places"] else ()),
        joins=joins(subject, slices, ids.get(subject.rule)),
        shapes=shapes(subject, slices),
        rules=[name for name in data["rules"] if name != subject.rule],
        refused=data["refused"],
        unit=subject.family.unit(subject.config) * subject.config.vision.patch_size,
        seen=data["seen"],
        first=data["first"],
    )


def _with_rule(subject: Subject) -> Subject:
    """The same with the family's rule where none is asked for; a rule for a family without rules is refused."""
    for option, name in (("--rule", subject.rule), ("--compare", subject.compare)):
        if name is not None and subject.family.rule is None:
            raise ValueError(f"explain: {option} {name} is not for {subject.family.title}, whose positions follow no rule")
        if name is not None:
            get_rule(name, "explain")
    return replace(subject, rule=subject.rule or subject.family.rule)


def ids_by_rule(subject: Subject, slices: Slices) -> dict[str | None, Ids | str]:
    """Rule -> the ids that the family gives, or why it gives none; under None for a family whose ids follow no rule.

    Empty for a family without ids.
    """
    family, config = subject.family, subject.config
    if not any(stage.name == "position_ids" for stage in family.stages):
        return {}
    if family.rule is None:
        return {None: family.position_ids(slices.tgt_sizes, config, None)}
    found: dict[str | None, Ids | str] = {}
    for name in RULES:
        try:
            found[name] = family.position_ids(slices.tgt_sizes, config, name)
        except (ValueError, ImportError) as error:
            if name == subject.rule:
                raise
            found[name] = str(error)
    return found


def page_data(subject: Subject, slices: Slices, ids: dict[str | None, Ids | str]) -> dict[str, Any]:
    """What the page's script reads: arrays, as the functions returned them."""
    vision, sizes = subject.config.vision, slices.tgt_sizes
    rules = [name for name, given in ids.items() if not isinstance(given, str)]
    lengths = sizes.prod(axis=1)
    rows, places = _rows(ids, lengths)
    own = ids.get(subject.rule)
    axes = ruler_places(own, slices, subject) if isinstance(own, np.ndarray) and subject.rule else None
    used = sorted({n for each in axes or [] for n in each["lengths"]})
    differ = {str(name): {str(n): _differ(n, subject, str(name)) for n in used} for name in rules if axes}
    table = {str(name): {str(n): ruler(n, vision.num_patches_per_side, str(name)) for n in used} for name in rules if axes}
    extent = [*as_rgb(subject.picture).size, *slices.boxes.max(axis=0)[2:].tolist()]
    return {
        "picture": {"image": picture_uri(subject.picture), "size": extent[:2], "extent": [max(extent[::2]), max(extent[1::2])]},
        "patch": vision.patch_size,
        "side": vision.num_patches_per_side,
        "longest": int(lengths.max()),
        "patches": int(lengths.sum()),
        "slices": [
            {"name": name, "size": size, "box": box.tolist(), "across": cells[0], "down": cells[1], **pixels}
            for name, size, box, cells, pixels in zip(
                slice_names(slices, extent[:2]),
                sizes.tolist(),
                slices.boxes,
                edges(slices),
                slice_pictures(slices, exact_bytes(subject)),
                strict=True,
            )
        ],
        "rule": subject.rule,
        "rules": [str(name) for name in rules] if subject.rule else [],
        "compare": subject.compare,
        "refused": {str(name): given for name, given in ids.items() if isinstance(given, str)},
        "ids": {"rows": rows, "of": places, "most": list(map(max, rows))},
        "changed": {str(name): changed(own, given, lengths) for name, given in ids.items() if isinstance(given, np.ndarray)},
        "counts": counts(own, ids, lengths),
        "places": axes,
        "rulers": table,
        "differ": differ,
        "edges": {str(name): edges_of(vision.num_patches_per_side, str(name)) for name in rules if axes},
        "first": first_patch(slices),
        "seen": seen(subject, slices),
    }


def _rows(ids: dict[str | None, Ids | str], lengths: Ids) -> tuple[list[list[int]], dict[str, list[int]]]:
    """The ids of each slice under each rule, without padding; equal ones once, and which slice has which."""
    rows: dict[tuple[int, ...], int] = {}
    places = {}
    for name, given in ids.items():
        if isinstance(given, np.ndarray):
            own = [tuple(row[:length].tolist()) for row, length in zip(given, lengths, strict=True)]
            places[str(name)] = [rows.setdefault(row, len(rows)) for row in own]
    return list(map(list, rows)), places


def changed(own: Any, other: Ids, lengths: Ids) -> list[list[int]]:
    """Per slice, the patches whose ids differ."""
    return [np.flatnonzero(a[:n] != b[:n]).tolist() for a, b, n in zip(own, other, lengths, strict=True)]


def counts(own: Any, ids: dict[str | None, Ids | str], lengths: Ids) -> dict[str, dict[str, Any]]:
    """Per rule, how many patches have another id: in each slice, and in all."""
    found = {}
    for name, given in ids.items():
        if isinstance(given, np.ndarray):
            each = [len(patches) for patches in changed(own, given, lengths)]
            found[str(name)] = {"each": each, "all": sum(each)}
    return found


def _differ(num_patches: int, subject: Subject, rule: str) -> list[int]:
    """The patches of an axis whose buckets are not those of the page's own rule."""
    side = subject.config.vision.num_patches_per_side
    own, other = (bucket_coords(num_patches, side, name) for name in (str(subject.rule), rule))
    found: list[int] = differing(own, other).tolist()
    return found


def edges(slices: Slices) -> list[tuple[list[float], list[float]]]:
    """Per slice, where its columns and its rows of patches begin and end in the original picture, in pixels."""
    return [
        (np.linspace(left, right, w + 1).tolist(), np.linspace(top, bottom, h + 1).tolist())
        for (left, top, right, bottom), (h, w) in zip(slices.boxes.tolist(), slices.tgt_sizes.tolist(), strict=True)
    ]


def ruler_places(ids: Ids, slices: Slices, subject: Subject) -> list[dict[str, Any]] | None:
    """Per slice, where each patch lies on a ruler of rows and on one of columns; None where its ids come from no rulers.

    Three ways are tried, and taken if they give the family's own ids: the slice's rows and columns; the places that the family
    says take part, which may be one long row; tiles of G patches a side, each with rulers of its own.
    """
    side, rule = subject.config.vision.num_patches_per_side, str(subject.rule)
    layouts = zip(slices.tgt_sizes.tolist(), subject.family.places(slices.tgt_sizes).tolist(), ids, strict=True)
    found = []
    for (h, w), (rows, columns), row in layouts:
        every = np.arange(h * w)
        ways = [
            (np.full(h * w, rows), every // columns, np.full(h * w, columns), every % columns),
            (*_in_tiles(every // w, h, side), *_in_tiles(every % w, w, side)),
        ]
        own = next((way for way in ways if np.array_equal(_ids_on_rulers(*way, side, rule), row[: h * w])), None)
        if own is None:
            return None
        lengths = list(dict.fromkeys([*own[0].tolist(), *own[2].tolist()]))
        found.append({"lengths": lengths, "at": np.stack(own, axis=1).tolist()})
    return found


def _in_tiles(places: Ids, length: int, side: int) -> tuple[Ids, Ids]:
    """Places along an axis -> the length of the tile that each lies in, and its place there."""
    start = places // side * side
    return np.minimum(side, length - start), places - start


def _ids_on_rulers(row_lengths: Ids, rows: Ids, column_lengths: Ids, columns: Ids, side: int, rule: str) -> Ids:
    """The ids that patches at these places of these rulers have."""
    buckets = {n: bucket_coords(n, side, rule) for n in {*row_lengths.tolist(), *column_lengths.tolist()}}
    pairs = zip(row_lengths.tolist(), rows.tolist(), column_lengths.tolist(), columns.tolist(), strict=True)
    return np.array([buckets[h][r] * side + buckets[w][c] for h, r, w, c in pairs])


def default_config(key: str) -> FamilyConfig:
    """The family's default config."""
    family = get_family(key, "explain")
    config: FamilyConfig = next(iter(family.presets().values()))
    return config


def exact_bytes(subject: Subject) -> int:
    """How many bytes of pixels the page may hold: fewer where it holds each token's attention, too."""
    return EXACT_BYTES if subject.until == "embeddings" else EXACT_BYTES // 3
