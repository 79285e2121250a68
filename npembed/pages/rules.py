"""`npembed rules --html`: for each rule and each n, how many patches take another bucket than under the original."""

import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from npembed.pages.page import render
from npembed.pages.rulers import edges_of, ruler
from npembed.steps.positions import RULES, bucket_coords
from npembed.steps.positions.differences import ORIGINAL, differing
from npembed.support import arguments
from npembed.support.typing import Ids

MOST = 4096
"""Sizes that one page shows, at most."""

RULERS_UP_TO = 128
"""The sizes whose rulers a page holds; for larger n it says how many patches differ, and the line that lists them."""

SOFTWARE = (
    "the checkpoints' own code",
    "transformers",
    "sglang",
    "vLLM",
    "TGI",
    "llama.cpp",
    "OpenVINO",
    "mlx-vlm",
    "mllm",
    "mistral.rs",
)
"""Names that the releases of `RULES` begin with or mention, for the page's filter."""


def rules_page(side: int = 70, up_to: int = 1024) -> str:
    """The page, as text of one HTML file.

    Parameters
    ----------
    side : int
        G, the rows of the position table per side.
    up_to : int
        N, the sizes 1, 2, ..., N are shown; at most `MOST`.
    """
    who = "rules"
    arguments.as_count(side, "side", who, most=arguments.MAX_SIDE)
    if arguments.as_count(up_to, "up_to", who) > MOST:
        raise ValueError(f"{who}: --html shows at most {MOST} sizes; got --up-to {up_to}")
    data = rules_data(side, up_to)
    return render(
        "rules.html.j2",
        ("base.js", "rulers.js", "rules.js"),
        data=data,
        title=f"{len(RULES)} ways to number a picture's patches",
        rules=RULES.values(),
        original=ORIGINAL,
        differ={name: sum(count > 0 for count in counts) for name, counts in data["counts"].items()},
        side=side,
        up_to=up_to,
        spans=sorted({n for n in (70, 128, 256, 512) if n < up_to} | {up_to}),
        first=data["first"],
    )


def rules_data(side: int, up_to: int) -> dict[str, Any]:
    """What the page's script reads."""
    sizes = range(1, up_to + 1)
    original = [bucket_coords(n, side) for n in sizes]
    counts = {
        name: [len(differing(own, bucket_coords(n, side, name))) for n, own in zip(sizes, original, strict=True)]
        for name in RULES
    }
    return {
        "side": side,
        "up_to": up_to,
        "original": ORIGINAL,
        "counts": counts,
        "releases": releases(),
        "differ": pairs_that_differ({name: [bucket_coords(n, side, name) for n in sizes[:RULERS_UP_TO]] for name in RULES}),
        "rulers": {name: [ruler(n, side, name) for n in sizes[:RULERS_UP_TO]] for name in RULES},
        "edges": {name: edges_of(side, name) for name in RULES},
        "first": first_difference(counts),
    }


def first_difference(counts: dict[str, list[int]]) -> list[Any]:
    """The rule and the n that the page opens with: `exact`'s first difference, or the first of any rule, or n = 1."""
    order = ["exact", *(name for name in counts if name != "exact")]
    found = [[name, n] for name in order for n, count in enumerate(counts[name], 1) if count and n <= RULERS_UP_TO]
    return found[0] if found else ["exact", 1]


def pairs_that_differ(buckets: Mapping[str, Sequence[Ids]]) -> dict[str, Any]:
    """For every two rules and every n, the patches that differ: each list once in `lists`, and its number in `of`.

    Examples
    --------
    >>> import numpy as np
    >>> pairs_that_differ({"a": [np.array([0]), np.array([0, 5])], "b": [np.array([0]), np.array([0, 6])]})
    {'lists': [[], [1]], 'of': {'a b': [0, 1]}}
    """
    lists: dict[tuple[int, ...], int] = {}
    pairs = {
        f"{one} {other}": [
            lists.setdefault(tuple(differing(*each).tolist()), len(lists))
            for each in zip(buckets[one], buckets[other], strict=True)
        ]
        for one, other in combinations(buckets, 2)
    }
    return {"lists": list(map(list, lists)), "of": pairs}


def releases() -> dict[str, list[dict[str, Any]]]:
    """Rule -> its releases. "the same" is the software of the entry before, "the same code as `rule`" that rule's first."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name, rule in RULES.items():
        found[name] = []
        for words in rule.releases:
            entry = release(words)
            other = re.match("the same code as `(.*?)`", words)
            before = found[other[1]][:1] if other else found[name][-1:]
            if not entry["software"] and words.startswith("the same") and before:
                entry["software"] = before[0]["software"]
            found[name].append(entry)
    return found


def release(words: str) -> dict[str, Any]:
    """One entry of a rule's releases: its words, the software that they name, and the spans of versions.

    A span is its first and its last version, each a list of numbers; None where it is open.

    Examples
    --------
    >>> release("mlx-vlm idefics2 0.0.7-0.7.10")["spans"]
    [[[0, 0, 7], [0, 7, 10]]]
    >>> release("OpenVINO GenAI minicpm since 2025.4")
    {'words': 'OpenVINO GenAI minicpm since 2025.4', 'software': ['OpenVINO'], 'spans': [[[2025, 4], None]]}
    """
    software = [name for name in SOFTWARE if name.lower() in words.lower()]
    rest = re.sub(r"\b(MiniCPM-\w+|o) \d\.\d(, \d\.\d)*", "", words)  # the numbers of models are no versions of software
    number = r"(\d+(?:\.\d+)+)"
    spans = []
    for before, first, last, after in re.findall(rf"(since |up to )?{number}(?:-{number})?( and later)?", rest):
        low, high = _numbers(first), _numbers(last or first)
        spans.append([None if before == "up to " else low, None if before == "since " or after else high])
    return {"words": words, "software": software, "spans": spans}


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]
