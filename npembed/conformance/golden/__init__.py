"""Golden packs: every stage's input and answer in files, for ports in any language."""

from npembed.conformance.golden.pack import Pack, read_pack, write_pack
from npembed.conformance.golden.verdict import (
    causes_need_weights,
    check_outputs,
    first_departing,
    outcome_names,
    stage_names,
    tried_in,
)

__all__ = [
    "Pack",
    "causes_need_weights",
    "check_outputs",
    "first_departing",
    "outcome_names",
    "read_pack",
    "stage_names",
    "tried_in",
    "write_pack",
]
