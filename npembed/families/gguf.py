"""What llama.cpp's mmproj files call the arrays of a SigLIP tower, whatever the family."""

_TOWER = {
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
"""The file's name -> the checkpoint's after its prefix. In older files fc1 and fc2 have each other's names; shapes tell."""


def tower_names(prefix: str) -> dict[str, str]:
    """The file's name -> the checkpoint's, for a tower of that prefix.

    Examples
    --------
    >>> tower_names("vpm.")["v.post_ln.*"]
    'vpm.post_layernorm.*'
    """
    return {ours: prefix + theirs for ours, theirs in _TOWER.items()}
