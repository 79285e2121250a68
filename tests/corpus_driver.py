"""A run that a test can stop at a moment it chooses: after each group it says so and waits for a line.

Words: the folder of pictures, OUT, and the address of a scheduler or how many workers of its own.
"""

import sys

from npembed import FAMILIES, random_model
from npembed.corpus import Settings, Watcher, build, engine


def main() -> None:
    """Begin, say so, and after each group wait to be told to go on."""
    engine.SECONDS_TO_ANSWER = 3  # so that a test does not wait long for a scheduler that was killed
    family = FAMILIES["minicpm-v-2.6"]
    model = random_model(family.small(family), until="tokens")

    def tell(*words: object) -> None:
        print(*words, flush=True)
        sys.stdin.readline()

    options = {"scheduler": sys.argv[3]} if "://" in sys.argv[3] else {"workers": int(sys.argv[3])}
    watch = Watcher(lambda pictures, dashboard: tell("begin", pictures), lambda pictures, failed: tell("done", pictures))
    try:
        summary = build([sys.argv[1]], sys.argv[2], model, "small", Settings(until="tokens"), watch=watch, **options)
    except ValueError as error:
        tell("refused", error)
        sys.exit(2)
    tell("end", summary.pictures, summary.failed, len(summary.unfinished))


if __name__ == "__main__":
    main()
