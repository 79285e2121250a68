"""What is checked of each public function: inputs in rising order, a strategy for more, and the faults to suspect."""

from npembed.conformance.probes import embeddings, encoder_and_resampler, images, merge, padding, patches, positions
from npembed.conformance.probes.probe import Call, FunctionCheck, Suspect

CHECKS: dict[str, FunctionCheck] = {
    check.name: check
    for room in (padding, patches, positions, images, embeddings, encoder_and_resampler, merge)
    for check in room.CHECKS
}
"""The check of each public name, in the order in which data walks through the functions."""

__all__ = ["CHECKS", "Call", "FunctionCheck", "Suspect"]
