"""What most families have in common: SigLIP's tower as it is, and position ids by a rule."""

from collections.abc import Sequence
from typing import Any

from npembed.records.config import VisionConfig
from npembed.records.family import Family, Step
from npembed.records.model import Model
from npembed.steps.encoder import post_layernorm, tower_layers
from npembed.steps.positions import position_ids
from npembed.support.typing import Ids

SMALL = VisionConfig(16, 32, 2, 2, patch_size=4, image_size=280)
"""A tower of small sizes, with the table of 70 x 70 that most releases have."""

UNEVEN: dict[str, Any] = {"mean": (0.48, 0.46, 0.41), "std": (0.27, 0.26, 0.28)}
"""Levels of each channel's own."""


class SiglipTower(Family):
    """A family whose tower is every layer that its config does not leave out, then the last norm (SPEC 7)."""

    def position_ids(self, tgt_sizes: Ids, config: Any, rule: Any) -> Ids:
        """By rows and columns of each slice, which the rule sorts into those of the table."""
        return position_ids(tgt_sizes, config.vision.num_patches_per_side, rule)

    def tower(self, model: Model) -> Sequence[Step]:
        """The layers, then the last norm."""
        return [*tower_layers(model, range(model.config.encoder_layers)), post_layernorm(model)]
