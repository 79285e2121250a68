"""Ports for the conformance kit to judge: right ones, and wrong ones with one fault each.

`Port` is what a port's author would write from SPEC.md: the padded batch, every place of it computed, the padding masked
out with -inf, loops over images. It uses no function of npembed. Its pieces call one another through self, so that a wrong
port is a right one with one piece replaced, and its fault shows in every function that uses the piece.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType, SimpleNamespace

import numpy as np
from scipy.special import erf

from npembed import MINICPM_V_2_6

PUBLIC = (
    "pad_sequence",
    "pad_pixel_values",
    "patch_attention_mask",
    "patch_conv",
    "boundaries",
    "fractional_coords",
    "bucketize",
    "bucket_coords",
    "position_ids",
    "tgt_sizes_from_mask",
    "randomized_positions",
    "flattened_position_ids",
    "embed",
    "encode",
    "resample",
    "image_placeholder",
    "image_bounds",
    "scatter_image_embeds",
    "slice_image",
)
"""The names by which ports are checked."""


class Port:
    """A right port, in the float type of the model's weights."""

    lanes = 8
    """float32 values per vector of the CPU on which torch filled its aranges."""

    # Padding

    def pad_sequence(self, sequences, batch_first=False, padding_value=0.0, padding_side="right"):
        arrays = [np.asarray(sequence) for sequence in sequences]
        longest = max(map(len, arrays))
        rows = []
        for array in arrays:
            filling = np.full((longest - len(array), *array.shape[1:]), padding_value, dtype=array.dtype)
            rows.append(np.concatenate([array, filling] if padding_side == "right" else [filling, array]))
        return np.stack(rows, axis=0 if batch_first else 1)

    def pad_pixel_values(self, strips):
        strips = [_as_floats(strip) for strip in strips]
        channels, side, _ = strips[0].shape
        columns = [strip.reshape(channels * side, -1).T for strip in strips]  # (L_i*P, C*P)
        padded = self.pad_sequence(columns, batch_first=True, padding_value=self._pixel_padding())
        return padded.transpose(0, 2, 1).reshape(len(strips), channels, side, -1)

    def _pixel_padding(self):
        return 0.0

    def patch_attention_mask(self, tgt_sizes):
        lengths = [self._length(h, w) for h, w in _pairs(tgt_sizes)]
        mask = np.zeros((len(lengths), 1, max(h * w for h, w in _pairs(tgt_sizes))), dtype=bool)
        for b, length in enumerate(lengths):
            mask[b, 0, :length] = True
        return mask

    def _length(self, h, w):
        return h * w

    # Patch convolution

    def patch_conv(self, pixel_values, weight, bias=None):
        weight = _as_floats(weight)
        bias = np.zeros(len(weight)) if bias is None else bias
        pixels, weight, bias = (self._enter(array, weight.dtype) for array in (pixel_values, weight, bias))
        return self._leave(self._convolve(pixels, weight, bias))

    def _enter(self, array, dtype):
        """What the port makes of floats that it is given, in a computation of that type."""
        return np.asarray(array).astype(dtype)

    def _leave(self, array):
        """What the port makes of floats that it gives back."""
        return array

    def _convolve(self, pixels, weight, bias):
        """(B, C, H, W), (D, C, P, P), (D,) -> (B, D, H//P, W//P), summed channel by channel."""
        side = weight.shape[-1]
        rows, columns = pixels.shape[2] // side, pixels.shape[3] // side
        total = bias
        for c in range(pixels.shape[1]):
            cells = pixels[:, c, : rows * side, : columns * side].reshape(-1, rows, side, columns, side)
            total = total + np.tensordot(cells, weight[:, c], axes=([2, 4], [1, 2]))  # (B, rows, columns, D)
        return np.moveaxis(total, -1, 1)

    # Position ids

    def _arange(self, start, end, step):
        """torch's: pairs of whole vectors, each counted on from its rounded base; then one element at a time."""
        count = math.ceil((end - start) / step)
        values = []
        while count - len(values) >= 2 * self.lanes:
            for _ in range(2):
                base = float(np.float32(start + step * len(values)))
                values += [np.float32(base + lane * step) for lane in range(self.lanes)]
        while len(values) < count:
            values.append(np.float32(start + step * len(values)))
        return np.array(values, dtype=np.float32)

    def boundaries(self, num_patches_per_side, rule="arange"):
        _refuse_other_rules(rule)
        return self._arange(1 / num_patches_per_side, 1.0, 1 / num_patches_per_side)

    def fractional_coords(self, num_patches, rule="arange"):
        _refuse_other_rules(rule)
        return self._arange(0.0, 1 - 1e-6, float(np.float32(1) / np.float32(num_patches)))

    def bucketize(self, values, boundaries, right=False):
        values, boundaries = np.asarray(values), np.asarray(boundaries).tolist()
        search = bisect_right if right else bisect_left
        found = [search(boundaries, value) for value in values.ravel().tolist()]
        return np.array(found, dtype=np.int64).reshape(values.shape)

    def bucket_coords(self, num_patches, num_patches_per_side=70, rule="arange"):
        coords, boundaries = self.fractional_coords(num_patches, rule), self.boundaries(num_patches_per_side, rule)
        return self.bucketize(coords, boundaries, right=True)

    def position_ids(self, tgt_sizes, num_patches_per_side=70, rule="arange", mask=None):
        slices = [self._slice_ids(h, w, num_patches_per_side, rule) for h, w in _pairs(tgt_sizes)]
        if mask is None:
            return self.pad_sequence(slices, batch_first=True, padding_value=0)
        places = np.asarray(mask).reshape(len(slices), -1)
        ids = np.zeros(places.shape, dtype=np.int64)
        for b, slice_ids in enumerate(slices):
            ids[b, places[b]] = slice_ids
        return ids

    def _slice_ids(self, h, w, side, rule):
        """(h*w,): row by row."""
        rows, columns = self.bucket_coords(h, side, rule), self.bucket_coords(w, side, rule)
        return self._id(rows[:, None], columns[None, :], side).ravel()

    def _id(self, row, column, side):
        return row * side + column

    def tgt_sizes_from_mask(self, mask):
        sizes = [(int(image[:, 0].sum()), int(image[0, :].sum())) for image in np.asarray(mask)]
        for image, (h, w) in zip(np.asarray(mask), sizes, strict=True):
            if image.sum() != h * w or not image[:h, :w].all():
                raise ValueError("the True places are no rectangle from the top left")
        return np.array(sizes, dtype=np.int64)

    def randomized_positions(self, length, max_length=2000, rng=None):
        if length > max_length:
            raise ValueError("more places than positions")
        return np.sort(np.random.default_rng(rng).permutation(max_length)[:length])

    def flattened_position_ids(self, tgt_sizes, num_patches_per_side=70, rule="arange"):
        slices = [self.bucket_coords(h * w, num_patches_per_side**2, rule) for h, w in _pairs(tgt_sizes)]
        return self.pad_sequence(slices, batch_first=True, padding_value=0)

    # Embeddings

    def embed(self, strips, tgt_sizes, model, rule=None):
        if len(strips) != len(tgt_sizes):
            raise ValueError("other strips than sizes")
        tail = ("patch_embedding.weight", "patch_embedding.bias", "position_embedding.weight")
        weight, bias, table = (self._enter(array, array.dtype) for array in _named(model, "vpm.embeddings", tail))
        pixels = self._enter(self.pad_pixel_values(strips), weight.dtype)
        features = self._convolve(pixels, weight, bias)[:, :, 0].transpose(0, 2, 1)  # (B, D, 1, Lmax) -> (B, Lmax, D)
        ids = self.position_ids(tgt_sizes, model.config.vision.num_patches_per_side, rule or "arange")
        return self._leave(features + self._positions(table[ids], tgt_sizes))

    def _positions(self, positions, tgt_sizes):
        """(B, Lmax, D): what is added to the features."""
        return positions

    # Encoder

    def encode(self, embeddings, tgt_sizes, model):
        allowed = self.patch_attention_mask(tgt_sizes)[:, 0]  # (B, Lmax)
        hidden = self._real(np.asarray(embeddings).astype(_dtype(model)), allowed, "encode")
        for number in range(self._layers(model)):
            hidden = self._layer(hidden, allowed, model, f"vpm.encoder.layers.{number}")
        return self._norm(hidden, model, "vpm.post_layernorm")

    def _real(self, x, allowed, stage):
        """What is in padded places is anything, a NaN too, which no mask of the scores keeps out of the sums."""
        return np.where(allowed[..., None], x, 0)

    def _layers(self, model):
        return model.config.vision.num_hidden_layers - model.config.drop_vision_last_layer

    def _layer(self, hidden, allowed, model, layer):
        normed = self._norm(hidden, model, f"{layer}.layer_norm1")
        names = self._projections("encode")
        queries, keys, values = (self._linear(normed, *_weights(model, f"{layer}.self_attn.{n}_proj")) for n in names)
        attended = self._attention(queries, keys, values, model.config.vision.num_attention_heads, allowed, "encode")
        hidden = hidden + self._linear(attended, *_weights(model, f"{layer}.self_attn.out_proj"))
        normed = self._norm(hidden, model, f"{layer}.layer_norm2")
        inner = self._gelu(self._linear(normed, *_weights(model, f"{layer}.mlp.fc1")))
        return hidden + self._linear(inner, *_weights(model, f"{layer}.mlp.fc2"))

    def _projections(self, stage):
        """Which projection makes queries, keys and values."""
        return "qkv"

    def _norm(self, x, model, name):
        weight, bias = _weights(model, name)
        centred = x - x.mean(axis=-1, keepdims=True)
        return centred / np.sqrt(self._variance(centred) + self._eps_of(model, name)) * weight + bias

    def _variance(self, centred):
        return (centred * centred).mean(axis=-1, keepdims=True)

    def _eps_of(self, model, name):
        return self._eps(model, "encode" if name.startswith("vpm.") else "resample")

    def _eps(self, model, stage):
        return model.config.vision.layer_norm_eps if stage == "encode" else 1e-6

    def _linear(self, x, weight, bias=0.0):
        return x @ weight.T + bias

    def _gelu(self, x):
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))

    def _attention(self, queries, keys, values, heads, allowed, stage):
        """(B, T, D), (B, L, D), (B, L, D), bool (B, L) -> (B, T, D): image by image, head by head."""
        width = queries.shape[-1] // heads
        attended = np.empty_like(queries)
        for b in range(len(queries)):
            for start in range(0, queries.shape[-1], width):
                head = slice(start, start + width)
                scores = queries[b, :, head] @ keys[b, :, head].T * self._scale(width, stage)  # (T, L)
                attended[b, :, head] = self._softmax(self._mask_scores(scores, allowed[b], stage)) @ values[b, :, head]
        return attended

    def _scale(self, width, stage):
        return width**-0.5

    def _mask_scores(self, scores, allowed, stage):
        return scores + np.where(allowed, 0, -np.inf).astype(scores.dtype)

    def _softmax(self, scores):
        with np.errstate(invalid="ignore"):  # a row without any key becomes NaN
            powers = np.exp(scores - self._most(scores))
        return powers / powers.sum(axis=-1, keepdims=True)

    def _most(self, scores):
        return scores.max(axis=-1, keepdims=True)

    # Resampler

    def resample(self, hidden, tgt_sizes, model, temporal_ids=None):
        if temporal_ids is not None:
            raise NotImplementedError("this port knows no groups of frames")
        query, to_qkv, qkv_bias = _named(model, "resampler", ("query", "attn.in_proj_weight", "attn.in_proj_bias"))
        allowed = self.patch_attention_mask(tgt_sizes)[:, 0]
        x = self._real(np.asarray(hidden).astype(query.dtype), allowed, "resample")
        if self._has_kv_proj(model):
            x = self._linear(x, model.weights["resampler.kv_proj.weight"])
        x = self._norm(x, model, "resampler.ln_kv")
        learned = np.stack([self._query(query, model)] * len(x))  # (B, Q, E)
        inputs = (learned, *self._keyed(x, self._sincos_batch(tgt_sizes, x.shape).astype(x.dtype)))
        order = ["qkv".index(name) for name in self._projections("resample")]
        parts = [(np.split(to_qkv, 3)[k], np.split(qkv_bias, 3)[k]) for k in order]
        queries, keys, values = (self._linear(one, *part) for one, part in zip(inputs, parts, strict=True))
        attended = self._attention(queries, keys, values, x.shape[-1] // 128, allowed, "resample")
        attended = self._linear(attended, *_weights(model, "resampler.attn.out_proj"))
        return self._linear(self._norm(attended, model, "resampler.ln_post"), self._proj(model).T)

    def _has_kv_proj(self, model):
        return "resampler.kv_proj.weight" in model.weights

    def _query(self, query, model):
        return self._norm(query, model, "resampler.ln_q")

    def _keyed(self, x, positions):
        """What keys and what values are made of."""
        return x + positions, x

    def _proj(self, model):
        return model.weights["resampler.proj"]

    def _sincos_batch(self, tgt_sizes, shape):
        """float32 (B, Lmax, E), zeros in padded places."""
        batch = np.zeros(shape, dtype=np.float32)
        for b, (h, w) in enumerate(_pairs(tgt_sizes)):
            rows, columns = (self._sincos(count, shape[-1] // 2) for count in (h, w))
            table = [self._join_axes(columns[c], rows[r]) for r in range(h) for c in range(w)]
            batch[b, : h * w] = table
        return batch

    def _sincos(self, count, channels):
        """float32 (count, channels)."""
        exponents = -np.arange(channels // 2, dtype=np.float32) / np.float32(channels // 2)
        angles = np.arange(count, dtype=np.float32)[:, None] * np.float32(10000) ** exponents
        return self._join_halves(np.sin(angles), np.cos(angles))

    def _join_halves(self, sines, cosines):
        return np.concatenate([sines, cosines], axis=-1)

    def _join_axes(self, column, row):
        return np.concatenate([column, row])

    # Into the language model

    def image_placeholder(self, grid, image_id=None, config=MINICPM_V_2_6, tgt_sizes=None):
        places = "<unk>" * self._places(config)
        text = "" if image_id is None or not self._writes_id(config) else f"<image_id>{image_id}</image_id>"
        text += f"<image>{places}</image>"
        if grid is None:
            return text
        columns, rows = self._columns_and_rows(grid)
        return text + "\n".join(f"<slice>{places}</slice>" * columns for _ in range(rows))

    def _places(self, config):
        return config.query_num

    def _writes_id(self, config):
        return config.use_image_id

    def _columns_and_rows(self, grid):
        return grid

    def image_bounds(self, input_ids, start_ids, end_ids):
        ids, start_ids, end_ids = (np.asarray(value).tolist() for value in (input_ids, start_ids, end_ids))
        starts = [place + 1 for place, token in enumerate(ids) if token in start_ids]
        ends = [self._end(place) for place, token in enumerate(ids) if token in end_ids]
        return np.array([starts, ends], dtype=np.int64).T

    def _end(self, place):
        return place

    def scatter_image_embeds(self, inputs_embeds, vision_tokens, image_bound, token_counts=None):
        if token_counts is not None:
            raise NotImplementedError("this port takes as many tokens for every slice")
        embeds = np.array(inputs_embeds)
        for tokens, (start, end) in zip(np.asarray(vision_tokens), np.asarray(image_bound), strict=True):
            for token, row in zip(tokens, self._rows(start, end), strict=True):
                embeds[row] = token
        return embeds

    def _rows(self, start, end):
        return range(start, end)

    # Pictures

    def slice_image(self, image, config=MINICPM_V_2_6, pixels="pillow"):
        if pixels != "pillow":
            raise NotImplementedError(f"this port knows the pixel rule 'pillow' only, not {pixels!r}")
        from PIL import Image

        picture = (Image.fromarray(image) if isinstance(image, np.ndarray) else image).convert("RGB")
        slicing, side = config.slicing, config.slicing.patch_size
        if slicing.slice_mode:
            slices = self._slices(picture, slicing)
        else:
            slices = [np.asarray(picture)[: picture.height // side * side, : picture.width // side * side]]
        sizes = [(pixels.shape[0] // side, pixels.shape[1] // side) for pixels in slices]
        strips = [self._strip(self._piece(pixels, number), slicing) for number, pixels in enumerate(slices)]
        return strips, np.array(sizes, dtype=np.int64)

    def _piece(self, pixels, number):
        return pixels

    def _slices(self, picture, slicing):
        """The whole picture, and its crops row by row."""
        source, refined, grid = self._plan(*picture.size, slicing)
        slices = [self._resize(picture, source)]
        if grid is not None:
            pixels = self._resize(picture, refined)
            width, height = refined[0] // grid[0], refined[1] // grid[1]
            corners = [(top, left) for top in range(0, refined[1], height) for left in range(0, refined[0], width)]
            slices += [pixels[top : top + height, left : left + width] for top, left in self._crops(corners)]
        return slices

    def _resize(self, picture, size):
        from PIL import Image

        return np.asarray(picture.resize(size, Image.Resampling[self.filter]))

    filter = "BICUBIC"

    def _crops(self, corners):
        return corners

    def _most_slices(self, slicing):
        return slicing.max_slice_nums

    def _resolution(self, slicing):
        return slicing.scale_resolution

    def _fit(self, length, unit):
        return max(round(length / unit) * unit, unit)

    def _plan(self, width, height, slicing):
        """What the picture is resized to, what for its crops, and their (columns, rows)."""
        most, area = self._most_slices(slicing), self._resolution(slicing) ** 2
        multiple = min(math.ceil(width * height / area), most)
        if multiple <= 1:
            return self._best_size(width, height, slicing, True), None, None
        grids = [(m, n // m) for n in range(multiple - 1, multiple + 2) for m in range(1, n + 1) if n % m == 0]
        grids = [(m, k) for m, k in grids if 1 < m * k <= most]
        errors = [abs(math.log(width / height) - math.log(m / k)) for m, k in grids]
        columns, rows = self._best(grids[self._nearest(errors)])
        cell = self._fit(width, columns) / columns, self._fit(height, rows) / rows
        cell_width, cell_height = self._best_size(*cell, slicing, True)
        return self._best_size(width, height, slicing, False), (cell_width * columns, cell_height * rows), (columns, rows)

    def _best_size(self, width, height, slicing, upscale):
        resolution = self._resolution(slicing)
        if upscale or width * height > resolution * resolution:
            ratio = width / height
            height = int(resolution / math.sqrt(ratio))
            width = int(height * ratio)
        return self._fit(width, slicing.patch_size), self._fit(height, slicing.patch_size)

    def _nearest(self, errors):
        return errors.index(min(errors))

    def _best(self, grid):
        return grid

    def _strip(self, pixels, slicing):
        """uint8 (H, W, 3) -> float32 (3, P, L*P)."""
        side, (height, width, _) = slicing.patch_size, pixels.shape
        values = self._normalised(self._channels(pixels), *self._levels(slicing))
        corners = [(top, left) for top in range(0, height, side) for left in range(0, width, side)]
        patches = [values[top : top + side, left : left + side] for top, left in self._order(corners)]
        return np.concatenate(patches, axis=1).transpose(2, 0, 1)

    def _levels(self, slicing):
        return slicing.mean, slicing.std

    def _normalised(self, pixels, mean, std):
        mean, std = (np.array(values, dtype=np.float32) for values in (mean, std))
        return (pixels.astype(np.float32) / np.float32(255) - mean) / std

    def _channels(self, pixels):
        return pixels

    def _order(self, corners):
        return corners


def _as_floats(value):
    """float32 and float64 as they are, the half types as float32, whole numbers as float64."""
    array = np.asarray(value)
    return array.astype({"float16": "float32", "bfloat16": "float32", "float32": "float32"}.get(array.dtype.name, "float64"))


def _pairs(tgt_sizes):
    return [(int(h), int(w)) for h, w in np.asarray(tgt_sizes)]


def _refuse_other_rules(rule):
    if rule != "arange":
        raise NotImplementedError(f"this port knows the rule 'arange' only, not {rule!r}")


def _named(model, prefix, tails):
    return [model.weights[f"{prefix}.{tail}"] for tail in tails]


def _weights(model, name):
    return _named(model, name, ("weight", "bias"))


def _dtype(model):
    return model.weights["vpm.post_layernorm.weight"].dtype


def as_module(port):
    """An object that has the port's public functions, as a module would."""
    return SimpleNamespace(**{name: getattr(port, name) for name in PUBLIC})


# Right ports


class ReversedPort(Port):
    """Every sum of products the other way round: the convolution one product at a time from the last, as no BLAS does."""

    def _convolve(self, pixels, weight, bias):
        side = weight.shape[-1]
        rows, columns = pixels.shape[2] // side, pixels.shape[3] // side
        total = np.zeros((), dtype=weight.dtype)
        for c, p, q in reversed(list(np.ndindex(weight.shape[1:]))):
            column = pixels[:, None, c, p : rows * side : side, q : columns * side : side]  # (B, 1, rows, columns)
            total = total + column * weight[:, c, p, q, None, None]
        return total + bias[:, None, None]

    def _linear(self, x, weight, bias=0.0):
        return x[..., ::-1] @ weight[:, ::-1].T + bias


class Float16Port(Port):
    """Inputs and outputs rounded to float16, products summed in float32."""

    half = np.float16

    def _enter(self, array, dtype):
        return np.asarray(array).astype(self.half).astype(np.float32)

    def _leave(self, array):
        return array.astype(self.half)


class WithBFloat16:
    """To be mixed in where NumPy must know the type: a test that makes such a port needs ml_dtypes."""

    half = "bfloat16"

    def __init__(self):
        import ml_dtypes  # noqa: F401


class BFloat16Port(WithBFloat16, Float16Port):
    """The same in bfloat16."""


class Float64Inside(Port):
    """Everything computed in float64, whatever the model's type; results in that type."""

    def _enter(self, array, dtype):
        return np.asarray(array).astype(np.float64)

    def patch_conv(self, pixel_values, weight, bias=None):
        return super().patch_conv(pixel_values, weight, bias).astype(_as_floats(weight).dtype)

    def embed(self, strips, tgt_sizes, model, rule=None):
        return super().embed(strips, tgt_sizes, model, rule).astype(model.dtype)

    def _linear(self, x, weight, bias=0.0):
        return np.float64(x) @ np.float64(weight).T + bias


class TiledSoftmax(Port):
    """Keys taken two at a time, with a running maximum and a running sum: the softmax of flash attention."""

    def _attention(self, queries, keys, values, heads, allowed, stage):
        width, attended = queries.shape[-1] // heads, np.empty_like(queries)
        for b in range(len(queries)):
            length = int(allowed[b].sum())
            for start in range(0, queries.shape[-1], width):
                head = slice(start, start + width)
                q = queries[b, :, head] * np.asarray(self._scale(width, stage), queries.dtype)
                attended[b, :, head] = self._online(q, keys[b, :length, head], values[b, :length, head])
        return attended

    def _online(self, q, keys, values):
        most = np.full((len(q), 1), -np.inf, dtype=q.dtype)
        total, result = np.zeros_like(most), np.zeros((len(q), values.shape[1]), dtype=q.dtype)
        for first in range(0, len(keys), 2):
            scores = q @ keys[first : first + 2].T
            higher = np.maximum(most, scores.max(axis=1, keepdims=True))
            powers, shrunk = np.exp(scores - higher), np.exp(most - higher)
            total = total * shrunk + powers.sum(axis=1, keepdims=True)
            result, most = result * shrunk + powers @ values[first : first + 2], higher
        return result / total


class EinsumPort(Port):
    """The linear maps and the convolution by einsum, in its own order."""

    def _linear(self, x, weight, bias=0.0):
        return np.einsum("...i,oi->...o", x, weight) + bias

    def _convolve(self, pixels, weight, bias):
        side = weight.shape[-1]
        rows, columns = pixels.shape[2] // side, pixels.shape[3] // side
        cells = pixels[:, :, : rows * side, : columns * side].reshape(len(pixels), -1, rows, side, columns, side)
        return np.einsum("bcrpwq,dcpq->bdrw", cells, weight) + bias[:, None, None]


class FortranViews(Port):
    """Results are views, Fortran-ordered or of every second element."""

    def _leave(self, array):
        return np.asfortranarray(array)

    def encode(self, embeddings, tgt_sizes, model):
        return np.asfortranarray(super().encode(np.asfortranarray(embeddings), tgt_sizes, model))

    def resample(self, hidden, tgt_sizes, model, temporal_ids=None):
        tokens = super().resample(np.asfortranarray(hidden), tgt_sizes, model, temporal_ids)
        return np.repeat(tokens, 2, axis=1)[:, ::2]

    def position_ids(self, tgt_sizes, num_patches_per_side=70, rule="arange", mask=None):
        return np.asfortranarray(super().position_ids(tgt_sizes, num_patches_per_side, rule, mask))


class FoldedScale(Port):
    """The scale is in the queries before their products are taken."""

    def _attention(self, queries, keys, values, heads, allowed, stage):
        scale = super()._scale(queries.shape[-1] // heads, stage)
        return super()._attention(queries * np.asarray(scale, queries.dtype), keys, values, heads, allowed, stage)

    def _scale(self, width, stage):
        return 1.0


class OnePassVariance(Port):
    """The mean of the squares minus the square of the mean: of few numbers that may be nothing but rounding."""

    def _norm(self, x, model, name):
        weight, bias = _weights(model, name)
        mean = x.mean(axis=-1, keepdims=True)
        variance = (x * x).mean(axis=-1, keepdims=True) - mean * mean
        return (x - mean) / np.sqrt(np.maximum(variance, 0) + self._eps_of(model, name)) * weight + bias


class PackedPort(Port):
    """All slices' places in one sequence, with cumulative lengths: there are no padded places."""

    def encode(self, embeddings, tgt_sizes, model):
        ends = np.cumsum([h * w for h, w in _pairs(tgt_sizes)])
        packed = np.concatenate([x[: h * w] for x, (h, w) in zip(embeddings, _pairs(tgt_sizes), strict=True)])
        hidden = packed.astype(_dtype(model))
        for number in range(self._layers(model)):
            hidden = self._packed_layer(hidden, ends, model, f"vpm.encoder.layers.{number}")
        hidden = self._norm(hidden, model, "vpm.post_layernorm")
        return self.pad_sequence(np.split(hidden, ends[:-1]), batch_first=True)

    def _packed_layer(self, hidden, ends, model, layer):
        parts = np.split(hidden, ends[:-1])
        return np.concatenate([self._layer(x[None], np.ones((1, len(x)), bool), model, layer)[0] for x in parts])


class NanInPadding(Port):
    """What stands in padded places of its hidden states is NaN."""

    def encode(self, embeddings, tgt_sizes, model):
        hidden = super().encode(embeddings, tgt_sizes, model)
        return np.where(self.patch_attention_mask(tgt_sizes)[:, 0, :, None], hidden, np.asarray(np.nan, hidden.dtype))


class InHalf(WithBFloat16):
    """To be mixed in: every linear map, norm, activation, softmax and product rounded to a half type, as a framework does."""

    def _round(self, x):
        with np.errstate(over="ignore"):
            return np.asarray(x).astype(self.half).astype(np.float32)

    def _real(self, x, allowed, stage):
        return self._round(super()._real(x, allowed, stage))

    def _linear(self, x, weight, bias=0.0):
        return self._round(super()._linear(self._round(x), self._round(weight), self._round(bias)))

    def _norm(self, x, model, name):
        return self._round(super()._norm(self._round(x), model, name))

    def _gelu(self, x):
        return self._round(super()._gelu(x))

    def _softmax(self, scores):
        return self._round(super()._softmax(self._round(scores)))

    def _attention(self, *args):
        return self._round(super()._attention(*args))

    def _keyed(self, x, positions):
        return tuple(map(self._round, super()._keyed(x, positions)))

    def encode(self, embeddings, tgt_sizes, model):
        return super().encode(embeddings, tgt_sizes, model).astype(self.half)

    def resample(self, hidden, tgt_sizes, model, temporal_ids=None):
        return super().resample(hidden, tgt_sizes, model, temporal_ids).astype(self.half)


def in_half(port, half="bfloat16"):
    """The port, right or wrong, in a half type."""
    return type(f"Half{port.__name__}", (InHalf, port), {"half": half})


RIGHT_PORTS: Mapping[str, type[Port]] = MappingProxyType(
    {"plain": Port, "reversed sums": ReversedPort, "float16": Float16Port, "bfloat16": BFloat16Port}
)
"""Ports that must pass. The type of the first two is the model's."""

UNUSUAL_PORTS: Mapping[str, type[Port]] = MappingProxyType(
    {
        "float64 inside": Float64Inside,
        "tiled online softmax": TiledSoftmax,
        "einsum": EinsumPort,
        "Fortran-ordered views": FortranViews,
        "scale folded into the queries": FoldedScale,
        "packed": PackedPort,
        "NaN in padding": NanInPadding,
        "one-pass variance": OnePassVariance,
    }
)
"""Right, each in its own way, in the model's type; the last at widths of 16 and more alone, as it says."""


# Wrong ports, one fault each


class PadsPixelsWithOne(Port):
    def _pixel_padding(self):
        return 1.0


class IgnoresPaddingSide(Port):
    def pad_sequence(self, sequences, batch_first=False, padding_value=0.0, padding_side="right"):
        return super().pad_sequence(sequences, batch_first, padding_value)


class MaskOneShort(Port):
    def _length(self, h, w):
        return h * w - 1


class MaskOneLong(Port):
    def _length(self, h, w):
        return h * w + 1


class LastPatchNoKey(Port):
    """The mask of the scores is one place short, and nothing else is."""

    stage = "encode"

    def _mask_scores(self, scores, allowed, stage):
        if stage == self.stage:
            allowed = allowed.copy()
            allowed[np.flatnonzero(allowed)[-1]] = False
        return super()._mask_scores(scores, allowed, stage)


class Causal(Port):
    def _mask_scores(self, scores, allowed, stage):
        if stage == "encode" and self._is_causal(allowed):
            scores = scores + np.triu(np.full(scores.shape, -np.inf, scores.dtype), 1)
        return super()._mask_scores(scores, allowed, stage)

    def _is_causal(self, allowed):
        return True


class CausalWhereUnpadded(Causal):
    """A framework's fast path: without a mask the attention is causal."""

    def encode(self, embeddings, tgt_sizes, model):
        self.unpadded = len({h * w for h, w in _pairs(tgt_sizes)}) == 1
        return super().encode(embeddings, tgt_sizes, model)

    def _is_causal(self, allowed):
        return self.unpadded


class BiasMissing(Port):
    def _convolve(self, pixels, weight, bias):
        return super()._convolve(pixels, weight, np.zeros_like(bias))


class KernelTransposed(Port):
    def _convolve(self, pixels, weight, bias):
        return super()._convolve(pixels, weight.swapaxes(2, 3), bias)


class ConvolvesBGR(Port):
    def _convolve(self, pixels, weight, bias):
        return super()._convolve(pixels[:, ::-1], weight, bias)


class Float16Sums(Float16Port):
    """Products and their running sum in float16 too."""

    _convolve = ReversedPort._convolve

    def _enter(self, array, dtype):
        return np.asarray(array).astype(np.float16)


class SearchesLeft(Port):
    def bucketize(self, values, boundaries, right=False):
        return super().bucketize(values, boundaries, right=False)


class MisreadsDigitize(Port):
    def bucketize(self, values, boundaries, right=False):
        return np.asarray(np.digitize(values, boundaries, right=right), dtype=np.int64)


class WholeNumberBuckets(Port):
    def bucket_coords(self, num_patches, num_patches_per_side=70, rule="arange"):
        return np.arange(num_patches, dtype=np.int64) * num_patches_per_side // num_patches


class FourLanes(Port):
    lanes = 4


class BFloat16Coords(WithBFloat16, Port):
    def fractional_coords(self, num_patches, rule="arange"):
        return super().fractional_coords(num_patches, rule).astype(self.half).astype(np.float32)


class BoundariesOfOneLess(Port):
    def boundaries(self, num_patches_per_side, rule="arange"):
        return super().boundaries(max(num_patches_per_side - 1, 1), rule)


class IdsByOneLess(Port):
    def _id(self, row, column, side):
        return super()._id(row, column, side - 1)


class IdsByColumn(Port):
    def _id(self, row, column, side):
        return super()._id(column, row, side)


class SwapsHeightAndWidth(Port):
    def _slice_ids(self, h, w, side, rule):
        return super()._slice_ids(w, h, side, rule)


class IgnoresMask(Port):
    def position_ids(self, tgt_sizes, num_patches_per_side=70, rule="arange", mask=None):
        ids = super().position_ids(tgt_sizes, num_patches_per_side, rule)
        return ids if mask is None else np.pad(ids, ((0, 0), (0, np.asarray(mask)[0].size - ids.shape[1])))


class IdsOfACanvas(Port):
    """As mlx-vlm's Idefics3: on a canvas of the largest sizes the ids stand at the first places, the patches at the mask's."""

    def position_ids(self, tgt_sizes, num_patches_per_side=70, rule="arange", mask=None):
        sizes, slices = _pairs(tgt_sizes), []
        rows, columns = max(h for h, w in sizes), max(w for h, w in sizes)
        for h, w in sizes:
            canvas = [0] * (rows * columns)
            canvas[: h * w] = self._slice_ids(h, w, num_patches_per_side, rule).tolist()
            slices.append(np.array([canvas[r * columns + c] for r in range(h) for c in range(w)]))
        if mask is None:
            return self.pad_sequence(slices, batch_first=True)
        ids = np.zeros((len(sizes), np.asarray(mask)[0].size), dtype=np.int64)
        for row, own, places in zip(ids, slices, np.asarray(mask), strict=True):
            row[places.ravel()] = own
        return ids


class CountsTheWholeBatch(Port):
    """The seed's else-branch as printed."""

    def tgt_sizes_from_mask(self, mask):
        mask = np.asarray(mask)
        return np.array([(mask[:, :, 0].sum(), mask[:, 0].sum())] * len(mask), dtype=np.int64)


class DrawsWithReplacement(Port):
    def randomized_positions(self, length, max_length=2000, rng=None):
        return np.sort(np.random.default_rng(rng).integers(0, max_length, length))


class NoPositionInPadding(Port):
    def _positions(self, positions, tgt_sizes):
        return positions * self.patch_attention_mask(tgt_sizes)[:, 0, :, None]


class GeluByErf(Port):
    def _gelu(self, x):
        return 0.5 * x * (1 + erf(x / math.sqrt(2)))


class WideEpsilon(Port):
    stage = "encode"

    def _eps(self, model, stage):
        return 1e-5 if stage == self.stage else super()._eps(model, stage)


class WideEpsilonInResampler(WideEpsilon):
    stage = "resample"


class Unscaled(Port):
    stage = "encode"

    def _scale(self, width, stage):
        return 1.0 if stage == self.stage else super()._scale(width, stage)


class UnscaledInResampler(Unscaled):
    stage = "resample"


class AttendsToPadding(Port):
    stage = "encode"

    def _real(self, x, allowed, stage):
        return x if stage == self.stage else super()._real(x, allowed, stage)

    def _mask_scores(self, scores, allowed, stage):
        return scores if stage == self.stage else super()._mask_scores(scores, allowed, stage)


class AttendsToPaddingInResampler(AttendsToPadding):
    stage = "resample"


class AddsBooleanMask(Port):
    stage = "encode"

    def _real(self, x, allowed, stage):
        return x if stage == self.stage else super()._real(x, allowed, stage)

    def _mask_scores(self, scores, allowed, stage):
        return scores + allowed if stage == self.stage else super()._mask_scores(scores, allowed, stage)


class AddsBooleanMaskInResampler(AddsBooleanMask):
    stage = "resample"


class CosinesFirst(Port):
    def _join_halves(self, sines, cosines):
        return super()._join_halves(cosines, sines)


class RowsFirst(Port):
    def _join_axes(self, column, row):
        return super()._join_axes(row, column)


class ProjTransposed(Port):
    def _proj(self, model):
        return super()._proj(model).T


class GridByRows(Port):
    def _columns_and_rows(self, grid):
        return grid[::-1]


class InclusiveBounds(Port):
    def _end(self, place):
        return place - 1


class ScattersOneEarly(Port):
    def _rows(self, start, end):
        return super()._rows(start - 1, end - 1)


class SlicesBGR(Port):
    def _channels(self, pixels):
        return pixels[:, :, ::-1]


class ReadsColumnMajor(Port):
    def _order(self, corners):
        return sorted(corners, key=lambda corner: corner[1])


class IgnoresLevels(Port):
    def _levels(self, slicing):
        return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


class ExchangesLevels(Port):
    def _levels(self, slicing):
        return slicing.std, slicing.mean


class FirstChannelsLevels(Port):
    def _levels(self, slicing):
        return slicing.mean[:1] * 3, slicing.std[:1] * 3


class NineSlices(Port):
    def _most_slices(self, slicing):
        return 9


class FixedResolution(Port):
    def _resolution(self, slicing):
        return 448


class HalfUp(Port):
    def _fit(self, length, unit):
        return max(math.floor(length / unit + 0.5) * unit, unit)


class Bilinear(Port):
    filter = "BILINEAR"


class NormalisesInFloat64(Port):
    def _normalised(self, pixels, mean, std):
        return ((pixels / 255 - np.array(mean)) / np.array(std)).astype(np.float32)


class CropsBGR(Port):
    def _piece(self, pixels, number):
        return pixels[:, :, ::-1] if number else pixels


class GridTurned(Port):
    def _best(self, grid):
        return grid[::-1]


class LastOfTies(Port):
    def _nearest(self, errors):
        return max(place for place, error in enumerate(errors) if error == min(errors))


class CropsByColumn(Port):
    def _crops(self, corners):
        return sorted(corners, key=lambda corner: corner[1])


class IgnoresEps(Port):
    def _eps(self, model, stage):
        return 1e-6


class WideEpsilonAtTheEnd(Port):
    """As mlx-vlm's Idefics2 and 3."""

    def _eps_of(self, model, name):
        return 1e-5 if name == "vpm.post_layernorm" else super()._eps_of(model, name)


class PinnedEpsilonAtTheEnd(Port):
    def _eps_of(self, model, name):
        return 1e-6 if name == "vpm.post_layernorm" else super()._eps_of(model, name)


class WideEpsilonInFirstNorms(Port):
    def _eps_of(self, model, name):
        return 1e-5 if name.endswith("layer_norm1") else super()._eps_of(model, name)


class RunsTheLastLayer(Port):
    def _layers(self, model):
        return model.config.vision.num_hidden_layers


class AlwaysKvProj(Port):
    def _has_kv_proj(self, model):
        return True


class NoMaximum(Port):
    def _most(self, scores):
        return np.zeros((), scores.dtype)

    def _softmax(self, scores):
        with np.errstate(over="ignore", invalid="ignore"):
            return super()._softmax(scores)


class ReadsPadding(Port):
    def _real(self, x, allowed, stage):
        return x


class QuickGelu(Port):
    def _gelu(self, x):
        return x / (1 + np.exp(-1.702 * x))


class UnbiasedVariance(Port):
    def _variance(self, centred):
        return (centred * centred).sum(axis=-1, keepdims=True) / (centred.shape[-1] - 1)


class ExchangesKeysAndValues(Port):
    stage = "encode"

    def _projections(self, stage):
        return "qvk" if stage == self.stage else "qkv"


class ExchangesKeysAndValuesInResampler(ExchangesKeysAndValues):
    stage = "resample"


class QueryNotNormed(Port):
    def _query(self, query, model):
        return query


class KeysWithoutPositions(Port):
    def _keyed(self, x, positions):
        return x, x


class PositionsOnValues(Port):
    """As vLLM's and sglang's MiniCPM-V 4.5."""

    def _keyed(self, x, positions):
        return x, x + positions


class SineTableClamped(Port):
    def _sincos(self, count, channels):
        return super()._sincos(min(count, 70), channels)[np.minimum(np.arange(count), 69)]


class SideOf70(Port):
    def bucket_coords(self, num_patches, num_patches_per_side=70, rule="arange"):
        return super().bucket_coords(num_patches, 70, rule)


class ProductBoundaries(Port):
    def boundaries(self, num_patches_per_side, rule="arange"):
        return np.arange(1, num_patches_per_side, dtype=np.float32) * (np.float32(1) / np.float32(num_patches_per_side))


class DigitizeIds(Port):
    """As mlx-vlm's Idefics2: the first bucket is -1."""

    def bucket_coords(self, num_patches, num_patches_per_side=70, rule="arange"):
        coords = np.linspace(0, 1, num_patches, endpoint=False)
        edges = np.linspace(1 / num_patches_per_side, 1, num_patches_per_side, endpoint=False)
        return np.digitize(coords, edges, right=True) - 1


class PairsByTheShorterList(Port):
    def image_bounds(self, input_ids, start_ids, end_ids):
        ids = np.asarray(input_ids).tolist()
        starts = [place + 1 for place, token in enumerate(ids) if token in start_ids]
        ends = [place for place, token in enumerate(ids) if token in end_ids]
        return np.array(list(zip(starts, ends, strict=False)), dtype=np.int64).reshape(-1, 2)


class TokensAtTheEnd(Port):
    def scatter_image_embeds(self, inputs_embeds, vision_tokens, image_bound, token_counts=None):
        embeds, tokens = np.array(inputs_embeds), np.concatenate(list(vision_tokens))
        if len(tokens) != sum(end - start for start, end in np.asarray(image_bound)):
            raise ValueError("other places than tokens")
        embeds[len(embeds) - len(tokens) :] = tokens
        return embeds


class EveryPlaceTrue(Port):
    def _length(self, h, w):
        return 10**9


class AlwaysWritesIds(Port):
    def _writes_id(self, config):
        return True


class Always64Places(Port):
    def _places(self, config):
        return 64


@dataclass(frozen=True)
class WrongPort:
    """A port with one fault, and where a checker must find it.

    Attributes
    ----------
    name : str
        The fault in words.
    port : type of Port
    functions : tuple of str
        The public functions in which it must be caught: those whose results differ on small inputs, among which are slices
        of 25 and 49 patches.
    stage : str or None
        The stage of a golden pack where it first shows; None for a function that no stage uses.
    smallest : (str, tuple) or None
        A function and the least arguments on which it departs, where they can be told: of `bucket_coords`, the smallest n
        for 70 patches per side.
    """

    name: str
    port: type[Port]
    functions: tuple[str, ...]
    stage: str | None
    smallest: tuple[str, tuple[object, ...]] | None = None


IDS = ("bucket_coords", "position_ids", "flattened_position_ids", "embed")
EMBEDDINGS = ("patch_conv", "embed")

WRONG_PORTS: tuple[WrongPort, ...] = (
    WrongPort("padding side ignored", IgnoresPaddingSide, ("pad_sequence",), None),
    WrongPort("padding with 1", PadsPixelsWithOne, ("pad_pixel_values", "embed"), "pixel_values"),
    WrongPort(
        "mask one short",
        MaskOneShort,
        ("patch_attention_mask", "encode", "resample"),
        "patch_attn_mask",
        smallest=("patch_attention_mask", ([[1, 1]],)),
    ),
    WrongPort("bias missing", BiasMissing, EMBEDDINGS, "embeddings"),
    WrongPort("kernel transposed", KernelTransposed, EMBEDDINGS, "embeddings"),
    WrongPort("convolution over BGR", ConvolvesBGR, EMBEDDINGS, "embeddings"),
    WrongPort("float16 accumulation", Float16Sums, EMBEDDINGS, "embeddings"),
    WrongPort("bucketize side left", SearchesLeft, ("bucketize", *IDS), "position_ids", smallest=("bucket_coords", (2,))),
    WrongPort(
        "digitize read as torch's bucketize",
        MisreadsDigitize,
        ("bucketize", *IDS),
        "position_ids",
        smallest=("bucket_coords", (2,)),
    ),
    WrongPort("exact integer rule", WholeNumberBuckets, IDS, "position_ids", smallest=("bucket_coords", (25,))),
    WrongPort(
        "arange with 4 lanes",
        FourLanes,
        ("boundaries", "fractional_coords", *IDS),
        "position_ids",
        smallest=("bucket_coords", (49,)),
    ),
    WrongPort(
        "coordinates rounded to bfloat16",
        BFloat16Coords,
        ("fractional_coords", *IDS),
        "position_ids",
        smallest=("bucket_coords", (7,)),
    ),
    WrongPort(
        "boundaries of G - 1", BoundariesOfOneLess, ("boundaries", *IDS), "position_ids", smallest=("bucket_coords", (2,))
    ),
    WrongPort(
        "ids by rows of G - 1", IdsByOneLess, ("position_ids", "embed"), "position_ids", smallest=("position_ids", ([[2, 1]],))
    ),
    WrongPort(
        "row and column swapped in the ids",
        IdsByColumn,
        ("position_ids", "embed"),
        "position_ids",
        smallest=("position_ids", ([[1, 2]],)),
    ),
    WrongPort(
        "h and w swapped in the ids",
        SwapsHeightAndWidth,
        ("position_ids", "embed"),
        "position_ids",
        smallest=("position_ids", ([[1, 2]],)),
    ),
    WrongPort("mask of the ids ignored", IgnoresMask, ("position_ids",), None),
    WrongPort("sizes from the whole batch's mask", CountsTheWholeBatch, ("tgt_sizes_from_mask",), None),
    WrongPort("positions drawn with replacement", DrawsWithReplacement, ("randomized_positions",), None),
    WrongPort("no position in padding", NoPositionInPadding, ("embed",), "embeddings"),
    WrongPort("gelu by erf", GeluByErf, ("encode",), "hidden"),
    WrongPort("layer norm eps 1e-5, encoder", WideEpsilon, ("encode",), "hidden"),
    WrongPort("layer norm eps 1e-5, resampler", WideEpsilonInResampler, ("resample",), "tokens"),
    WrongPort("attention scale missing, encoder", Unscaled, ("encode",), "hidden"),
    WrongPort("attention scale missing, resampler", UnscaledInResampler, ("resample",), "tokens"),
    WrongPort("softmax over padding, encoder", AttendsToPadding, ("encode",), "hidden"),
    WrongPort("softmax over padding, resampler", AttendsToPaddingInResampler, ("resample",), "tokens"),
    WrongPort("boolean mask added as a number, encoder", AddsBooleanMask, ("encode",), "hidden"),
    WrongPort("boolean mask added as a number, resampler", AddsBooleanMaskInResampler, ("resample",), "tokens"),
    WrongPort("cosines before sines", CosinesFirst, ("resample",), "tokens"),
    WrongPort("rows before columns in the sine table", RowsFirst, ("resample",), "tokens"),
    WrongPort("proj transposed", ProjTransposed, ("resample",), "tokens"),
    WrongPort("grid read as rows, columns", GridByRows, ("image_placeholder",), "text"),
    WrongPort("image_bound inclusive", InclusiveBounds, ("image_bounds",), "image_bound"),
    WrongPort("scatter off by one", ScattersOneEarly, ("scatter_image_embeds",), "inputs_embeds"),
    WrongPort("strips in BGR", SlicesBGR, ("slice_image",), "sliced_strips"),
    WrongPort("strips read column-major", ReadsColumnMajor, ("slice_image",), "sliced_strips"),
    # What the kit let pass once
    WrongPort("mean and std ignored", IgnoresLevels, ("slice_image",), "sliced_strips"),
    WrongPort("mean and std exchanged", ExchangesLevels, ("slice_image",), "sliced_strips"),
    WrongPort("the first channel's mean and std for all", FirstChannelsLevels, ("slice_image",), "sliced_strips"),
    WrongPort("max_slice_nums ignored", NineSlices, ("slice_image",), "sliced_tgt_sizes"),
    WrongPort("scale_resolution ignored", FixedResolution, ("slice_image",), "sliced_tgt_sizes"),
    WrongPort("rounded half up", HalfUp, ("slice_image",), "sliced_tgt_sizes"),
    WrongPort("bilinear", Bilinear, ("slice_image",), "sliced_strips"),
    WrongPort("pixels normalised in float64", NormalisesInFloat64, ("slice_image",), "sliced_strips"),
    WrongPort("crops in BGR", CropsBGR, ("slice_image",), "sliced_strips"),
    WrongPort("grid turned", GridTurned, ("slice_image",), "sliced_tgt_sizes"),
    WrongPort("crops by column", CropsByColumn, ("slice_image",), "sliced_strips"),
    WrongPort("layer_norm_eps ignored", IgnoresEps, ("encode",), "hidden"),
    WrongPort("eps 1e-5 in post_layernorm", WideEpsilonAtTheEnd, ("encode",), "hidden"),
    WrongPort("drop_vision_last_layer ignored", RunsTheLastLayer, ("encode",), "hidden"),
    WrongPort("kv_proj always looked for", AlwaysKvProj, ("resample",), "tokens"),
    WrongPort("softmax without its maximum", NoMaximum, ("encode", "resample"), "hidden"),
    WrongPort("NaN of padded places", ReadsPadding, ("encode", "resample"), "hidden"),
    WrongPort("quick gelu", QuickGelu, ("encode",), "hidden"),
    WrongPort("unbiased variance", UnbiasedVariance, ("encode", "resample"), "hidden"),
    WrongPort("keys and values exchanged, encoder", ExchangesKeysAndValues, ("encode",), "hidden"),
    WrongPort("keys and values exchanged, resampler", ExchangesKeysAndValuesInResampler, ("resample",), "tokens"),
    WrongPort("query not normed", QueryNotNormed, ("resample",), "tokens"),
    WrongPort("keys without positions", KeysWithoutPositions, ("resample",), "tokens"),
    WrongPort("positions on the values", PositionsOnValues, ("resample",), "tokens"),
    WrongPort("sine table clamped at 70", SineTableClamped, ("resample",), "tokens"),
    WrongPort("G taken as 70", SideOf70, IDS, "position_ids"),
    WrongPort("boundaries by products", ProductBoundaries, ("boundaries", *IDS), "bucket_coords"),
    WrongPort("digitize's ids", DigitizeIds, IDS, "position_ids"),
    WrongPort("starts and ends paired by the shorter list", PairsByTheShorterList, ("image_bounds",), None),
    WrongPort("tokens at the text's end", TokensAtTheEnd, ("scatter_image_embeds",), "inputs_embeds"),
    WrongPort("mask of True places", EveryPlaceTrue, ("patch_attention_mask", "encode", "resample"), "patch_attn_mask"),
    WrongPort("mask one long", MaskOneLong, ("patch_attention_mask", "encode", "resample"), "patch_attn_mask"),
    WrongPort("last patch no key", LastPatchNoKey, ("encode",), "hidden"),
    WrongPort("causal attention", Causal, ("encode",), "hidden"),
    WrongPort("causal attention where nothing is padded", CausalWhereUnpadded, ("encode",), "hidden"),
    WrongPort("ids at a canvas's first places", IdsOfACanvas, ("position_ids", "embed"), "position_ids"),
    WrongPort("the last of two grids", LastOfTies, ("slice_image",), "sliced_tgt_sizes"),
    WrongPort("eps 1e-6 in post_layernorm", PinnedEpsilonAtTheEnd, ("encode",), "hidden"),
    WrongPort("eps 1e-5 in layer_norm1", WideEpsilonInFirstNorms, ("encode",), "hidden"),
    WrongPort("use_image_id ignored", AlwaysWritesIds, ("image_placeholder",), "text"),
    WrongPort("query_num ignored", Always64Places, ("image_placeholder",), "text"),
)


def wrong_port(name):
    """The class of the wrong port of that name."""
    return next(wrong.port for wrong in WRONG_PORTS if wrong.name == name)


def most_used(check, port, precision):
    """The most that a port uses of what it is allowed, over the fixed inputs of a check that say anything at that precision."""
    worst = 0.0
    for call in check.calls:
        if check.suits(call, precision) and not call.refused:
            units = np.abs(np.asarray(call.of(port)).astype(np.float64) - check.expected(call)) / check.allowed(call, precision)
            worst = max(worst, float((units if check.places is None else units[check.places(call)]).max()))
    return worst
