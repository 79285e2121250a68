"""Golden packs: every stage's input and answer in files, for ports in any language."""

from npembed.conformance.golden.pack import Pack, read_pack, write_pack
from npembed.conformance.golden.verdict import check_outputs, first_departing

__all__ = ["Pack", "check_outputs", "first_departing", "read_pack", "write_pack"]
