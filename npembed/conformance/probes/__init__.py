"""What is checked of each public function: inputs in rising order, a strategy for more, and the distance that is allowed.

The faults to suspect are in `npembed.conformance.suspects`, which needs no Hypothesis.
"""

try:
    import hypothesis  # noqa: F401  # the modules below draw with it
except ImportError:
    raise ImportError("the conformance kit needs Hypothesis: pip install 'npembed[testing]'") from None

from npembed.conformance.probes import embeddings, images, merge, padding, patches, positions, tower
from npembed.conformance.probes.family import family_checks
from npembed.conformance.probes.probe import Call, FunctionCheck
from npembed.conformance.suspects import Suspect

CHECKS: dict[str, FunctionCheck] = {
    check.name: check for room in (padding, patches, positions, images, embeddings, tower, merge) for check in room.CHECKS
}
"""The check of each public name, in the order in which data walks through the functions."""

__all__ = ["CHECKS", "Call", "FunctionCheck", "Suspect", "family_checks"]
