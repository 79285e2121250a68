"""Each kind of input, and how often it comes."""

from tests.fuzz import cases
from tests.fuzz.archives import packed
from tests.fuzz.cases import Make
from tests.fuzz.corpora import stranger
from tests.fuzz.servers import served

KINDS: dict[Make, int] = cases.KINDS | {stranger: 8, packed: 4, served: 4}
"""In parts of the sum."""
