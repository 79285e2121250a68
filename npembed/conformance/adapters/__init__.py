"""From a model of another shape to functions that the kit can check.

- `tensors`: torch's tensors in and out, and a model's arrays into a module.
- `layouts`: models that take all slices as one sequence, pictures or places on a canvas with a mask, one slice at a time, or
  pictures in place of strips.

A module of transformers becomes a port in about fifteen lines:

    as_torch = Tensors(torch, torch.bfloat16)
    PRECISION = "bfloat16"

    @as_torch.port
    def encode(embeddings, tgt_sizes, model):
        vision = model.config.vision
        config = SiglipVisionConfig(hidden_size=vision.hidden_size, …)
        encoder = as_torch.load(SiglipEncoder(config), model, "vpm.encoder.")
        norm = as_torch.load(torch.nn.LayerNorm(vision.hidden_size, vision.layer_norm_eps), model, "vpm.post_layernorm.")
        hidden = encoder(inputs_embeds=embeddings, attention_mask=as_torch.additive_mask(tgt_sizes)).last_hidden_state
        return norm(hidden)
"""

from npembed.conformance.adapters.layouts import (
    from_pictures,
    ids_on_canvas,
    on_canvas,
    packed,
    packed_ids,
    packed_strips,
    places_on_canvas,
    slice_by_slice,
    sliced,
    strip_by_strip,
)
from npembed.conformance.adapters.tensors import Tensors

__all__ = [
    "Tensors",
    "from_pictures",
    "ids_on_canvas",
    "on_canvas",
    "packed",
    "packed_ids",
    "packed_strips",
    "places_on_canvas",
    "slice_by_slice",
    "sliced",
    "strip_by_strip",
]
