"""README.md of a corpus: says to the library `datasets`, and to the Hugging Face Hub, which tables are in the folder."""

from npembed.corpus.index import INDEX, VECTORS
from npembed.corpus.place import Place

CARD = "README.md"


def card(*tables: str) -> bytes:
    """The text for those tables. The first is the one that is loaded where none is named.

    Examples
    --------
    >>> print(card("index.parquet").decode().partition("A corpus")[0])
    ---
    configs:
    - config_name: index
      data_files: index.parquet
      default: true
    ---
    <BLANKLINE>
    <BLANKLINE>
    """
    configs = [f"- config_name: {name.partition('.')[0]}\n  data_files: {name}\n" for name in tables]
    configs[0] += "  default: true\n"
    return f"---\nconfigs:\n{''.join(configs)}---\n\nA corpus of pictures, made by `npembed corpus`.\n".encode()


def write_card(place: Place) -> None:
    """README.md, unless a person has written another."""
    known = [card(INDEX), card(INDEX, VECTORS)]
    now = known[place.size(VECTORS) >= 0]
    size = place.size(CARD)
    if size < 0 or (size in map(len, known) and place.read(CARD) in known):
        place.write(CARD, lambda path: path.write_bytes(now))
