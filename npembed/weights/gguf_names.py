"""What llama.cpp's mmproj files call the arrays of a checkpoint, by the file's `clip.projector_type`.

In a name, `*` stands for weight and bias, and `N` for the number of a block. A checkpoint's array to which several of the
file's are mapped is those, laid end to end by rows in this order.
"""

from collections.abc import Mapping
from dataclasses import dataclass

TOWER = {
    "v.patch_embd.*": "embeddings.patch_embedding.*",
    "v.position_embd.weight": "embeddings.position_embedding.weight",
    "v.blk.N.ln1.*": "encoder.layers.N.layer_norm1.*",
    "v.blk.N.attn_q.*": "encoder.layers.N.self_attn.q_proj.*",
    "v.blk.N.attn_k.*": "encoder.layers.N.self_attn.k_proj.*",
    "v.blk.N.attn_v.*": "encoder.layers.N.self_attn.v_proj.*",
    "v.blk.N.attn_out.*": "encoder.layers.N.self_attn.out_proj.*",
    "v.blk.N.ln2.*": "encoder.layers.N.layer_norm2.*",
    "v.blk.N.ffn_up.*": "encoder.layers.N.mlp.fc1.*",
    "v.blk.N.ffn_down.*": "encoder.layers.N.mlp.fc2.*",
    "v.post_ln.*": "post_layernorm.*",
}
"""The tower's, after its prefix. fc1 and fc2 have each other's names in older files; their shapes tell."""

RESAMPLER = {
    "resampler.query": "resampler.query",
    "resampler.proj.weight": "resampler.proj",
    "resampler.kv.weight": "resampler.kv_proj.weight",
    "resampler.attn.q.weight": "resampler.attn.in_proj_weight",
    "resampler.attn.k.weight": "resampler.attn.in_proj_weight",
    "resampler.attn.v.weight": "resampler.attn.in_proj_weight",
    "resampler.attn.q.bias": "resampler.attn.in_proj_bias",
    "resampler.attn.k.bias": "resampler.attn.in_proj_bias",
    "resampler.attn.v.bias": "resampler.attn.in_proj_bias",
    "resampler.attn.out.*": "resampler.attn.out_proj.*",
    "resampler.ln_q.*": "resampler.ln_q.*",
    "resampler.ln_kv.*": "resampler.ln_kv.*",
    "resampler.ln_post.*": "resampler.ln_post.*",
}

WINDOW_MERGER = {
    "v.vit_merger.ln1.*": "model.vision_tower.vit_merger.layer_norm1.*",
    "v.vit_merger.attn_q.*": "model.vision_tower.vit_merger.self_attn.q_proj.*",
    "v.vit_merger.attn_k.*": "model.vision_tower.vit_merger.self_attn.k_proj.*",
    "v.vit_merger.attn_v.*": "model.vision_tower.vit_merger.self_attn.v_proj.*",
    "v.vit_merger.attn_out.*": "model.vision_tower.vit_merger.self_attn.out_proj.*",
    "v.vit_merger.ds_ln.*": "model.vision_tower.vit_merger.pre_norm.*",
    "v.vit_merger.ds_ffn_up.*": "model.vision_tower.vit_merger.linear_1.*",
    "v.vit_merger.ds_ffn_down.*": "model.vision_tower.vit_merger.linear_2.*",
}

MERGER = {
    "mm.input_norm.*": "model.merger.mlp.0.pre_norm.*",
    "mm.up.*": "model.merger.mlp.0.linear_1.*",
    "mm.down.*": "model.merger.mlp.0.linear_2.*",
}


@dataclass(frozen=True)
class Names:
    """One projector's names.

    Attributes
    ----------
    tower : str
        The prefix of the tower's arrays in the checkpoint.
    others : mapping
        The file's name -> the checkpoint's, of the arrays that are not in `TOWER`.
    turned : frozenset of str
        The checkpoint's arrays that the file holds transposed.
    ignored : frozenset of str
        The file's arrays that no stage reads.
    legacy : bool
        Written by the converter that gives fc1 and fc2 each other's names, and may state a block too few.
    """

    tower: str
    others: Mapping[str, str]
    turned: frozenset[str] = frozenset()
    ignored: frozenset[str] = frozenset()
    legacy: bool = False


GGUF_NAMES = {
    "resampler": Names("vpm.", RESAMPLER, frozenset({"resampler.proj"}), frozenset({"resampler.pos_embed_k"}), legacy=True),
    "minicpmv4_6": Names("model.vision_tower.", WINDOW_MERGER | MERGER),
    "idefics3": Names("model.vision_model.", {"mm.model.fc.weight": "model.connector.modality_projection.proj.weight"}),
}
"""By `clip.projector_type`."""
