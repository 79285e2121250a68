"""Where the released position rules differ from the original: the figures behind `npembed rules`."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from npembed.steps.positions import bucket_coords
from npembed.steps.positions.rules import RULES, Rule, get_rule
from npembed.support import arguments
from npembed.support.typing import Ids

ORIGINAL = next(iter(RULES))


@dataclass(frozen=True)
class RuleComparison:
    """One rule compared with the original, for one G and every n from 1 to some N.

    Attributes
    ----------
    rule : Rule
    differs : tuple of int
        The n whose buckets are not the original's.
    wrong_length : tuple of int
        The n for which the rule gives other than n buckets.
    least, greatest : int
        Of all the buckets.
    in_range : bool
        Whether every bucket lies in [0, G-1].
    rises : bool
        Whether no vector of buckets ever falls.
    """

    rule: Rule
    differs: tuple[int, ...]
    wrong_length: tuple[int, ...]
    least: int
    greatest: int
    in_range: bool
    rises: bool

    def as_json(self) -> dict[str, Any]:
        """What `npembed rules --json` says of the rule."""
        return {
            "arithmetic": self.rule.arithmetic,
            "boundaries": self.rule.boundaries_words,
            "search": self.rule.search_words,
            "releases": list(self.rule.releases),
            "differs_from_arange": list(self.differs),
            "wrong_length": list(self.wrong_length),
            "min": self.least,
            "max": self.greatest,
            "in_range": self.in_range,
            "rises": self.rises,
        }


def compare_rules(num_patches_per_side: int = 70, up_to: int = 1024) -> list[RuleComparison]:
    """Every rule against the original.

    Parameters
    ----------
    num_patches_per_side : int
        G, from 1 to 32,768.
    up_to : int
        N: the sizes 1, 2, ..., N are compared; from 1 to 32,768.

    Returns
    -------
    list of RuleComparison
        In the order of `RULES`.

    Raises
    ------
    ValueError, TypeError
        A side or N out of range.

    Examples
    --------
    >>> {row.rule.name: row.differs for row in compare_rules(70, up_to=70)}["exact"]
    (25, 49, 50, 55, 58)
    """
    side = arguments.as_count(num_patches_per_side, "num_patches_per_side", "compare_rules", most=arguments.MAX_SIDE)
    sizes = range(1, arguments.as_count(up_to, "up_to", "compare_rules", most=arguments.MAX_SIDE) + 1)
    original = {n: bucket_coords(n, side) for n in sizes}
    rows = []
    for rule in RULES.values():
        buckets = {n: bucket_coords(n, side, rule.name) for n in sizes}
        least, greatest = (int(extreme(list(map(extreme, buckets.values())))) for extreme in (np.min, np.max))
        rows.append(
            RuleComparison(
                rule=rule,
                differs=tuple(n for n in sizes if not np.array_equal(buckets[n], original[n])),
                wrong_length=tuple(n for n in sizes if len(buckets[n]) != n),
                least=least,
                greatest=greatest,
                in_range=least >= 0 and greatest < side,
                rises=all(bool((values[1:] >= values[:-1]).all()) for values in buckets.values()),
            )
        )
    return rows


def rules_as_json(num_patches_per_side: int, up_to: int) -> dict[str, Any]:
    """What `npembed rules --json` prints."""
    rows = compare_rules(num_patches_per_side, up_to)
    rules = {row.rule.name: row.as_json() for row in rows}
    return {"num_patches_per_side": num_patches_per_side, "up_to": up_to, "rules": rules}


def rules_as_markdown(num_patches_per_side: int, up_to: int) -> str:
    """The table as Markdown, for documents."""
    head, line = "| " + " | ".join(TABLE_HEAD) + " |", "|" + "---|" * len(TABLE_HEAD)
    rows = [table_row(row, num_patches_per_side) for row in compare_rules(num_patches_per_side, up_to)]
    return "\n".join([head, line, *("| " + " | ".join((f"`{row[0]}`", *row[1:])) + " |" for row in rows)])


TABLE_HEAD = ("rule", "n that differ", "ids", "released in", "coordinate of patch i of n")


def table_row(row: RuleComparison, num_patches_per_side: int) -> tuple[str, ...]:
    """One rule in words, a cell for each of `TABLE_HEAD`."""
    which = ", ".join(map(str, row.differs[:6])) + (", …" if len(row.differs) > 6 else "")
    differ = f"{len(row.differs)}: {which}" if row.differs else "none"
    ids = f"{row.least}..{row.greatest}" + ("" if row.in_range else f", not in 0..{num_patches_per_side - 1}")
    ids += ", rise" if row.rises else ", fall"
    if row.wrong_length:
        ids += f", wrong number at {len(row.wrong_length)} n"
    return row.rule.name, differ, ids, "; ".join(row.rule.releases), row.rule.arithmetic


def compare_two(first: str, second: str, num_patches: int, num_patches_per_side: int = 70) -> dict[str, Any]:
    """The buckets of two rules for one size, and the patches where they differ.

    Parameters
    ----------
    first, second : str
        Names in `RULES`.
    num_patches : int
        n, from 1 to 32,768.
    num_patches_per_side : int
        G, from 1 to 32,768.

    Returns
    -------
    dict
        `num_patches_per_side`, `n`, `rules` (name -> its buckets) and `differ`, the patches whose buckets are not the
        same or that only one of the two has.

    Raises
    ------
    ValueError, TypeError
        An unknown rule, a number out of range.

    Examples
    --------
    >>> compare_two("arange", "exact", 25)["differ"]
    [5, 10, 15, 20]
    """
    names = [get_rule(name, "compare_two").name for name in (first, second)]
    one, other = (bucket_coords(num_patches, num_patches_per_side, name) for name in names)
    rules = {names[0]: one.tolist(), names[1]: other.tolist()}
    return {
        "num_patches_per_side": num_patches_per_side,
        "n": num_patches,
        "rules": rules,
        "differ": differing(one, other).tolist(),
    }


def differing(one: Ids, other: Ids) -> Ids:
    """int64 (n,), (m,) -> int64 (k,): the patches whose buckets are not the same, or that only one of the two has.

    Examples
    --------
    >>> differing(np.array([0, 2, 4]), np.array([0, 3])).tolist()
    [1, 2]
    """
    shared = min(len(one), len(other))
    return np.concatenate([np.flatnonzero(one[:shared] != other[:shared]), np.arange(shared, max(len(one), len(other)))])
