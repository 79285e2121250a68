"""The contests of whole pipelines: a JPEG's bytes to one vector (SigLIP base), and to vision tokens (MiniCPM-V 4.6)."""

import io
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.models.minicpmv4_6.configuration_minicpmv4_6 import MiniCPMV4_6Config
from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import MiniCPMV4_6ImageProcessorPil
from transformers.models.minicpmv4_6.modeling_minicpmv4_6 import MiniCPMV4_6Model
from transformers.models.siglip.configuration_siglip import SiglipVisionConfig
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip.modeling_siglip import SiglipVisionModel

import npembed
from benchmarks.contest import OURS, Contest, Contestant, DisagreementError
from benchmarks.stages import make_jpeg
from npembed import Model

PICTURE = (640, 480)

TOLERANCE = 2.0**-15
"""How far two float32 pipelines may be from each other after all layers, as a share of the largest value."""

TEXT = {
    "model_type": "qwen3_5_text",
    "layer_types": ["full_attention"],
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "intermediate_size": 16,
}
"""Of a language model that is made and never run."""


def pooled_contest() -> Contest:
    """SigLIP base (224): decode, resize, tower, head; one vector."""
    config = npembed.FAMILIES["siglip"].presets()["SigLIP base (224)"]
    model = npembed.random_model(config, until="pooled")
    theirs = SiglipVisionModel(SiglipVisionConfig())
    load_module(theirs, model, config.family.prefix)
    processor = SiglipImageProcessorPil()

    def features(pixels: Any) -> Any:
        return theirs(**pixels).pooler_output

    return _contest(model, "pooled", processor, features)


def tokens_contest() -> Contest:
    """MiniCPM-V 4.6: decode, slices, tower with the window merger, merger; every slice's tokens."""
    family = npembed.FAMILIES["minicpm-v-4.6"]
    config = next(iter(family.presets().values()))
    model = npembed.random_model(config, until="tokens")
    text = {**TEXT, "hidden_size": config.embed_dim, "vocab_size": 8}
    theirs = MiniCPMV4_6Model(
        MiniCPMV4_6Config(text_config=text, vision_config=asdict(config.vision), insert_layer_id=config.insert_layer_id)
    )
    load_module(theirs, model, "model.")
    processor = MiniCPMV4_6ImageProcessorPil()

    def features(pixels: Any) -> Any:
        found = theirs.get_image_features(pixels["pixel_values"], pixels["target_sizes"]).pooler_output
        return torch.cat(list(found))

    return _contest(model, "tokens", processor, features)


def load_module(module: torch.nn.Module, model: Model, prefix: str) -> None:
    """The model's arrays into the module; everything else in it plays no part."""
    weights = {name.removeprefix(prefix): torch.from_numpy(array.copy()) for name, array in model.weights.items()}
    unknown = module.load_state_dict(weights, strict=False).unexpected_keys
    if unknown:
        raise DisagreementError(f"transformers has no array {unknown[0]}")
    module.eval()


def _contest(model: Model, stage: str, processor: Any, features: Callable[[Any], Any]) -> Contest:
    jpeg = make_jpeg(PICTURE)

    def ours() -> Any:
        strips, tgt_sizes = npembed.slice_image(Image.open(io.BytesIO(jpeg)), model.config)
        arrays = npembed.run(strips, tgt_sizes, model, until=stage)
        counts = arrays.get("token_counts")
        rows = arrays[stage]
        return rows if counts is None else np.concatenate([row[:count] for row, count in zip(rows, counts, strict=True)])

    def transformers() -> Any:
        with torch.inference_mode():
            return features(processor(Image.open(io.BytesIO(jpeg)), return_tensors="pt")).numpy()

    expected = transformers()

    def check(name: str, result: Any) -> None:
        distance = np.abs(result - expected).max()
        if not distance <= TOLERANCE * np.abs(expected).max():
            raise DisagreementError(
                f"{name}: {distance:.2g} from transformers, whose largest value is {np.abs(expected).max():.2g}"
            )

    return Contest([Contestant(OURS, ours), Contestant("transformers", transformers)], check)
