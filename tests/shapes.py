"""The stages of MiniCPM-V 2.6 that read arrays, and the shapes of those arrays, for tests that make checkpoints."""

from npembed import MINICPM_V_2_6, Config
from npembed.records.model import shapes_of
from npembed.support.typing import Shapes

STAGES = tuple(stage.name for stage in MINICPM_V_2_6.family.vision_stages)


def stage_shapes(config: Config, stage: str) -> Shapes:
    """Of one stage's arrays, by name."""
    return shapes_of(config.family.stage(stage, "test"), config)


def shapes_until(config: Config, until: str) -> Shapes:
    """Of the arrays of every stage up to and with that one."""
    stages = config.family.stages_until(until, "test")
    return {name: shape for stage in stages for name, shape in shapes_of(stage, config).items()}
