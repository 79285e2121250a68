"""What a contest is: contestants that compute the same thing, and a check that they do."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

OURS = "npembed"
"""The contestant that every ratio is taken to."""

PRODUCT = "product"
"""The floor: nothing but the matrix products that nobody can leave out, by np.matmul in float32."""


class DisagreementError(Exception):
    """Two contestants do not compute the same thing, so that their times mean nothing."""


@dataclass(frozen=True)
class Contestant:
    """One way to compute a case.

    Attributes
    ----------
    name : str
    run : callable
        What is timed. Modules, sessions and inputs are made before, once.
    before : callable, optional
        Called before each call of `run`, outside the timing.
    """

    name: str
    run: Callable[[], Any]
    before: Callable[[], None] | None = None


@dataclass(frozen=True)
class Contest:
    """A case's contestants, npembed among them, and how a result is checked.

    Attributes
    ----------
    contestants : sequence of Contestant
    check : callable
        (name of the contestant, its result) -> None, or a `DisagreementError`.
    """

    contestants: Sequence[Contestant]
    check: Callable[[str, Any], None]

    def agree(self) -> None:
        """Run every contestant once and check what it gives."""
        for contestant in self.contestants:
            if contestant.before:
                contestant.before()
            self.check(contestant.name, contestant.run())
