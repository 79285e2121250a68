"""Which of the released position rules a port's ids follow.

`rules` are the names of all that fit on every size, and where several do, on the first sizes beyond on which they part;
`judged_by` the first of them, or None where its ids are no rows of the table; `nearest` the rule that fits on the most sizes,
with how many it misses, or None without ids.
"""

from functools import cache
from typing import Any

import numpy as np

import npembed

SIDE = 70
MOST = 300
"""Rows or columns of patches."""

FARTHEST = 4096
"""Columns of patches, for rules that are one up to `MOST`: those in float16 part beyond 2,048."""


def misses(port: Any) -> dict[str, int]:
    """Rule -> of the slices of 1 x n and of n x 1, n to `MOST`, how many have other ids than the port's."""
    counts = dict.fromkeys(npembed.RULES, 0)
    for sizes in ([(1, n) for n in range(1, MOST + 1)], [(n, 1) for n in range(1, MOST + 1)]):
        found = np.asarray(port.position_ids(np.array(sizes), SIDE))
        for rule in counts:
            counts[rule] += sum(not _agrees(ids, size, rule) for ids, size in zip(found, sizes, strict=True))
    return counts


def _agrees(ids: Any, size: tuple[int, int], rule: str) -> bool:
    """Whether the first ids are those that the rule's buckets make, in range or not; it may have none for that size."""
    try:
        rows, columns = (_buckets(n, rule) for n in size)
    except ValueError:
        return False
    expected = np.add.outer(rows * SIDE, columns).ravel()
    return bool(np.array_equal(ids[: len(expected)], expected))


@cache
def _buckets(n: int, rule: str) -> Any:
    return npembed.bucket_coords(n, SIDE, rule)


def rules_of(port: Any) -> dict[str, Any]:
    """`rules`, `judged_by` and `nearest`."""
    if not hasattr(port, "position_ids"):
        return {"rules": [], "judged_by": None, "nearest": None}
    counts = misses(port)
    nearest = min(counts, key=counts.__getitem__)
    rules = told_apart(port, [rule for rule, count in counts.items() if not count])
    return {"rules": rules, "judged_by": next(filter(_has_rows, rules), None), "nearest": [nearest, counts[nearest]]}


def told_apart(port: Any, rules: list[str]) -> list[str]:
    """Those of the rules that the port still follows where they part, beyond `MOST`; all of them if it follows none there."""
    for n in range(MOST + 1, FARTHEST + 1):
        if len(rules) < 2:
            break
        first, *others = (_buckets(n, rule) for rule in rules)
        if not all(np.array_equal(first, other) for other in others):
            [ids] = np.asarray(port.position_ids(np.array([(1, n)]), SIDE))
            rules = [rule for rule in rules if _agrees(ids, (1, n), rule)] or rules
    return rules


def _has_rows(rule: str) -> bool:
    """Whether the rule's ids stand for rows of the table, from one patch on: `digitize` begins at -1."""
    try:
        npembed.position_ids([(1, 1)], SIDE, rule)
    except ValueError:
        return False
    return True
