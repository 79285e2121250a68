"""What the commands share: what they say, the bar of long work, and where a model comes from."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from npembed import MINICPM_V_2_6, random_model
from npembed.cli.weights import load_weights
from npembed.families import FAMILIES
from npembed.records.model import Model
from npembed.support.messages import brief, did_you_mean, shown

SEED = 0
"""Of the random weights that stand in for a checkpoint."""


def say(line: str = "") -> None:
    """One line on the screen, not broken to its width; it may name files."""
    print(shown(line, most=10_000), flush=True)


def as_utf8(text: str) -> str:
    """The text, with the bytes of a file's name that are no UTF-8 spelt out."""
    return text.encode("utf-8", "backslashreplace").decode()


def known_stage(until: str, who: str = "embed") -> str:
    """The stage's name, if any family has such a stage."""
    known = dict.fromkeys(stage.name for family in FAMILIES.values() for stage in family.vision_stages)
    if until not in known:
        raise ValueError(f"{who}: --until must be one of {', '.join(known)}; got {brief(until)}{did_you_mean(until, known)}")
    return until


def model_of(weights: str | Path | None, until: str) -> tuple[Model, str]:
    """The model, and where its weights come from in words."""
    if weights is not None:
        return load_weights(weights, until)
    vision = MINICPM_V_2_6.vision
    sizes = f"D {vision.hidden_size}, G {vision.num_patches_per_side}"
    return random_model(seed=SEED, until=until), f"random (seed {SEED}) in the sizes of MiniCPM-V 2.6 ({sizes})"


def refuse(message: str, code: int = 2) -> int:
    """One line on the error stream; the exit code."""
    if sys.stderr is not None:  # where the error stream is closed, `print` would take the other
        print(f"npembed: {shown(message)}", file=sys.stderr)
    return code


def show(text: str) -> None:
    """Lines that npembed itself has made."""
    print(text, flush=True)


class Bar:
    """A bar over pictures and the encoder's layers; nothing where the screen is no terminal."""

    def __init__(self, bar: Progress, pictures: int) -> None:
        self._bar, self._done, self._pictures = bar, 0, pictures
        self._task: TaskID = bar.add_task("", total=pictures)

    def layers(self, done: int, total: int) -> None:
        """Part of a picture is done."""
        self._bar.update(self._task, completed=self._done + done / total, description=f"layer {done} of {total}")

    def picture_done(self) -> None:
        """A whole picture is done."""
        self._done += 1
        self._bar.update(self._task, completed=self._done, description=f"picture {self._done} of {self._pictures}")


@contextmanager
def bar_over(until: str, pictures: int) -> Iterator[Bar]:
    """A bar for so many pictures, where the work takes long."""
    console = Console()
    slow = until != "embeddings" or pictures > 3
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not (slow and console.is_terminal)) as bar:
        yield Bar(bar, pictures)
