"""Many pictures: bounded memory, one row per picture, and a run that was stopped goes on where it was."""

from npembed.corpus.build import Summary, Watcher, build
from npembed.corpus.nearest import Neighbour, search
from npembed.corpus.reading import Corpus
from npembed.corpus.reading import open_corpus as open  # noqa: A004  # `npembed.corpus.open` reads as it is meant
from npembed.corpus.settings import Settings

__all__ = ["Corpus", "Neighbour", "Settings", "Summary", "Watcher", "build", "open", "search"]
