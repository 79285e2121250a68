"""What the commands share: what they say, and where a model comes from."""

from npembed import MINICPM_V_2_6, random_model
from npembed.cli_weights import load_weights
from npembed.families import FAMILIES
from npembed.model import Model
from npembed.words import brief, did_you_mean, shown

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


def model_of(weights: str | None, until: str) -> tuple[Model, str]:
    """The model, and where its weights come from in words."""
    if weights is not None:
        return load_weights(weights, until)
    vision = MINICPM_V_2_6.vision
    sizes = f"D {vision.hidden_size}, G {vision.num_patches_per_side}"
    return random_model(seed=SEED, until=until), f"random (seed {SEED}) in the sizes of MiniCPM-V 2.6 ({sizes})"
