"""What torch and SciPy say, for comparison; nothing here uses npembed."""

import math

import numpy as np
from scipy import signal


class _Torch:
    """torch, imported when it is asked for: without it the tests that ask are skipped."""

    def __getattr__(self, name):
        import torch

        torch.set_num_threads(1)  # its waiting threads and NumPy's would slow each other down tenfold
        return getattr(torch, name)


torch = _Torch()


def torch_layer_norm(x, weight, bias, eps):
    """torch.nn.LayerNorm over the last axis."""
    x = torch.tensor(np.asarray(x))
    norm = torch.nn.LayerNorm(x.shape[-1], eps=eps, dtype=x.dtype)
    norm.load_state_dict({"weight": torch.tensor(weight), "bias": torch.tensor(bias)})
    with torch.no_grad():
        return norm(x).numpy()


def torch_gelu(x):
    """torch.nn.GELU, the tanh form."""
    return torch.nn.GELU(approximate="tanh")(torch.tensor(x)).numpy()


def torch_attention(queries, keys, values, heads):
    """(M, D), (L, D), (L, D) -> (M, D): torch's scaled_dot_product_attention of all heads at once."""
    split = [torch.tensor(x).unflatten(-1, (heads, -1)).transpose(0, 1) for x in (queries, keys, values)]
    return torch.nn.functional.scaled_dot_product_attention(*split).transpose(0, 1).flatten(1).numpy()


def _torch_mha(in_weight, in_bias, out_weight, out_bias, heads):
    arrays = {"in_proj_weight": in_weight, "in_proj_bias": in_bias, "out_proj.weight": out_weight, "out_proj.bias": out_bias}
    tensors = {name: torch.tensor(array) for name, array in arrays.items()}
    attention = torch.nn.MultiheadAttention(len(out_bias), heads, batch_first=True, dtype=tensors["in_proj_bias"].dtype)
    attention.load_state_dict(tensors)
    return attention


def _torch_padding(tgt_sizes, longest):
    """bool (B, Lmax): True where a slice has ended."""
    return torch.tensor([[place >= h * w for place in range(longest)] for h, w in np.asarray(tgt_sizes).tolist()])


def torch_encoder(embeddings, tgt_sizes, weights, layers, heads, eps):
    """SPEC 7 as a padded batch with a key mask, from torch.nn; what is in padded places means nothing."""
    x = torch.tensor(embeddings)
    padding = _torch_padding(tgt_sizes, x.shape[1])

    def of(name):
        return torch.tensor(weights[f"{name}.weight"]), torch.tensor(weights[f"{name}.bias"])

    def norm(y, name):
        return torch.nn.functional.layer_norm(y, y.shape[-1:], *of(name), eps=eps)

    with torch.no_grad():
        for layer in (f"vpm.encoder.layers.{number}" for number in range(layers)):
            attention = f"{layer}.self_attn"
            packed = [np.concatenate([weights[f"{attention}.{n}_proj.{kind}"] for n in "qkv"]) for kind in ("weight", "bias")]
            out = [weights[f"{attention}.out_proj.{kind}"] for kind in ("weight", "bias")]
            y = norm(x, f"{layer}.layer_norm1")
            x = x + _torch_mha(*packed, *out, heads)(y, y, y, key_padding_mask=padding, need_weights=False)[0]
            y = torch.nn.functional.linear(norm(x, f"{layer}.layer_norm2"), *of(f"{layer}.mlp.fc1"))
            x = x + torch.nn.functional.linear(torch.nn.functional.gelu(y, approximate="tanh"), *of(f"{layer}.mlp.fc2"))
        return norm(x, "vpm.post_layernorm").numpy()


def sincos_naive(h, w, channels):
    """float64 (h*w, E): SPEC 8's table, one number at a time."""
    quarter = channels // 4
    omegas = [10000 ** (-k / quarter) for k in range(quarter)]
    return np.array(
        [
            [wave(place * omega) for place in (column, row) for wave in (math.sin, math.cos) for omega in omegas]
            for row in range(h)
            for column in range(w)
        ]
    )


def torch_resampler(hidden, tgt_sizes, weights, heads, table_of=sincos_naive):
    """SPEC 8 as a padded batch with a key mask, from torch.nn; `table_of` gives a slice's table of positions."""
    x = torch.tensor(hidden)
    padding = _torch_padding(tgt_sizes, x.shape[1])

    def norm(y, name):
        affine = (torch.tensor(weights[f"resampler.{name}.{kind}"]) for kind in ("weight", "bias"))
        return torch.nn.functional.layer_norm(y, y.shape[-1:], *affine, eps=1e-6)

    with torch.no_grad():
        if "resampler.kv_proj.weight" in weights:
            x = torch.nn.functional.linear(x, torch.tensor(weights["resampler.kv_proj.weight"]))
        x = norm(x, "ln_kv")
        table = torch.zeros_like(x)
        for row, (h, w) in zip(table, np.asarray(tgt_sizes).tolist(), strict=True):
            row[: h * w] = torch.tensor(table_of(h, w, x.shape[-1]))
        names = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
        attention = _torch_mha(*(weights[f"resampler.attn.{name}"] for name in names), heads)
        queries = norm(torch.tensor(weights["resampler.query"]), "ln_q").expand(len(x), -1, -1)
        attended = attention(queries, x + table, x, key_padding_mask=padding, need_weights=False)[0]
        return (norm(attended, "ln_post") @ torch.tensor(weights["resampler.proj"])).numpy()


def torch_arange_coords(num_patches):
    """The checkpoint's own coordinates; its number of patches is a tensor, so that the step is a float32."""
    return torch.arange(0, 1 - 1e-6, 1 / torch.tensor(num_patches)).numpy()


def torch_boundaries(side):
    """The checkpoint's own boundaries."""
    return torch.arange(1 / side, 1.0, 1 / side).numpy()


def torch_bucketize(values, boundaries, right):
    """torch.bucketize."""
    return torch.bucketize(torch.tensor(values), torch.tensor(boundaries), right=right).numpy()


def torch_shrunk_coords(num_patches, dtype):
    """transformers 4.55's coordinates for pixels of a dtype, given by its name; widened to float32."""
    index = torch.arange(num_patches, dtype=getattr(torch, dtype))
    return (index / torch.tensor(num_patches) * (1 - 1e-6)).float().numpy()


def torch_step_coords(num_patches, dtype):
    """transformers 5.0's coordinates for pixels of a dtype, given by its name; widened to float32."""
    coords = torch.clamp(torch.arange(num_patches, dtype=torch.float32) * (1.0 / torch.tensor(num_patches)), max=1.0 - 1e-6)
    return coords.to(getattr(torch, dtype)).float().numpy()


def seed_position_ids(tgt_sizes, side, mask):
    """(B, 2), bool (B, ...) -> int64 (B, K): the seed's loop over the slices."""
    ids = torch.zeros((len(mask), mask[0].size), dtype=torch.int64)
    boundaries = torch.arange(1 / side, 1.0, 1 / side)
    for b, (h, w) in enumerate(torch.tensor(tgt_sizes)):
        rows = torch.bucketize(torch.arange(0, 1 - 1e-6, 1 / h), boundaries, right=True)
        columns = torch.bucketize(torch.arange(0, 1 - 1e-6, 1 / w), boundaries, right=True)
        ids[b][torch.tensor(mask[b]).view(-1)] = (rows[:, None] * side + columns).flatten()
    return ids.numpy()


def idefics2_position_ids(mask, side):
    """bool (B, H, W) -> int64 (B, H*W): transformers' Idefics2 embeddings of black pixels, where id k's position is [k]."""
    from transformers.models.idefics2.configuration_idefics2 import Idefics2VisionConfig
    from transformers.models.idefics2.modeling_idefics2 import Idefics2VisionEmbeddings

    config = Idefics2VisionConfig(hidden_size=1, num_channels=1, image_size=side, patch_size=1)
    embeddings = Idefics2VisionEmbeddings(config).double()
    with torch.no_grad():
        for parameter in embeddings.patch_embedding.parameters():
            parameter.zero_()
        embeddings.position_embedding.weight.copy_(torch.arange(side * side)[:, None])
        batch = torch.zeros((len(mask), 1, *mask.shape[1:]), dtype=torch.float64)
        return embeddings(batch, torch.tensor(mask))[..., 0].long().numpy()


def nearest_position_ids(tgt_sizes, side):
    """(B, 2) -> int64 (sum of h*w,): transformers' own function for MiniCPM-V 4.6."""
    from transformers.vision_utils import get_vision_nearest_position_ids

    return get_vision_nearest_position_ids(torch.tensor(tgt_sizes), side).numpy()


def torch_pad_sequence(sequences, **options):
    """torch.nn.utils.rnn.pad_sequence."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(sequence) for sequence in sequences], **options).numpy()


def seed_pixel_values(strips):
    """list of (C, P, L_i*P) -> (B, C, P, Lmax*P), by the seed's steps."""
    columns = [torch.tensor(strip).flatten(end_dim=1).permute(1, 0) for strip in strips]
    padded = torch.nn.utils.rnn.pad_sequence(columns, batch_first=True, padding_value=0.0)
    return padded.permute(0, 2, 1).reshape(len(strips), strips[0].shape[0], -1, padded.shape[1]).numpy()


def seed_mask(tgt_sizes):
    """(B, 2) -> bool (B, 1, Lmax), by the seed's loop."""
    sizes = torch.tensor(tgt_sizes)
    mask = torch.zeros((len(sizes), 1, int(torch.max(sizes[:, 0] * sizes[:, 1]))), dtype=torch.bool)
    for b in range(len(sizes)):
        mask[b, 0, : sizes[b][0] * sizes[b][1]] = True
    return mask.numpy()


def torch_conv(pixels, weight, bias=None):
    """torch's Conv2d with kernel = stride, padding "valid", in float64."""
    tensors = [None if array is None else torch.tensor(array, dtype=torch.float64) for array in (pixels, weight, bias)]
    return torch.nn.functional.conv2d(*tensors, stride=weight.shape[-1], padding="valid").numpy()


def scipy_conv(pixels, weight, bias):
    """The same by SciPy: the correlation at every pixel, of which every P-th is kept; float64."""
    side = weight.shape[-1]
    pixels, weight = pixels.astype(np.float64), weight.astype(np.float64)
    planes = [[signal.correlate(x, kernel, mode="valid", method="direct")[0] for kernel in weight] for x in pixels]
    return np.array(planes)[:, :, ::side, ::side] + bias[:, None, None]


def seed_embeddings(strips, tgt_sizes, weight, bias, table, side):
    """list of (C, P, L_i*P), (B, 2) -> float64 (B, Lmax, D): the seed from end to end."""
    patches = torch.tensor(torch_conv(seed_pixel_values(strips), weight, bias)).flatten(2).transpose(1, 2)
    ids = torch.tensor(seed_position_ids(tgt_sizes, side, seed_mask(tgt_sizes)))
    return (patches + torch.nn.functional.embedding(ids, torch.tensor(table, dtype=torch.float64))).numpy()


def float32_gamma(terms):
    """Higham's gamma_n: how far, relative to the sum of magnitudes, a float32 sum of n rounded terms can be off."""
    return terms * 2.0**-24 / (1 - terms * 2.0**-24)
