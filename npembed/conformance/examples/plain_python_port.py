"""A port of the embedding stage in plain Python: from strips of pixels to embeddings with nothing but lists and floats.

It is here to be read by someone who writes the next port. The functions with a docstring of shapes bear npembed's public
names and are what a port is checked by; the few helpers stand below their users. Nothing is vectorised, no array library is
used. Python's floats are float64, and so are the sums; where the result depends on float32, `float32` rounds. Check it with

    npembed check npembed/conformance/examples/plain_python_port.py

What a module has is checked; what it lacks (here slicing, the encoder, the resampler) is listed as not provided.

Shapes: B slices in the batch; C channels; P pixels along a patch's side; h rows and w columns of patches in a slice, a row of
`tgt_sizes`; L = h*w patches in a slice, Lmax in the longest; D channels of an embedding; G rows and columns of the position
table. An array of shape (B, L) is a list of B lists of L elements.
"""

import math
import struct

LANES = 8
"""float32 values in a vector of the CPU whose torch.arange is the original, x86-64: see `arange`."""


def as_lists(array):
    """An array of any library, or a list of them, as nested lists."""
    if hasattr(array, "tolist"):
        return array.tolist()
    return [as_lists(element) for element in array] if isinstance(array, (list, tuple)) else array


# 1. Ragged slices become one rectangular batch.


def pad_sequence(sequences, batch_first=False, padding_value=0.0, padding_side="right"):
    """B of (L_i, ...) -> (B, Lmax, ...) if batch_first, else (Lmax, B, ...)."""
    sequences = [as_lists(sequence) for sequence in sequences]
    longest = max(len(sequence) for sequence in sequences)
    example = next((sequence[0] for sequence in sequences if sequence), padding_value)
    padded = []
    for sequence in sequences:
        filling = [filled_like(example, padding_value) for _ in range(longest - len(sequence))]
        padded.append(sequence + filling if padding_side == "right" else filling + sequence)
    return padded if batch_first else [list(step) for step in zip(*padded, strict=True)]


def filled_like(example, value):
    """`value` in the shape of the example, as the kind of number that it holds."""
    if isinstance(example, list):
        return [filled_like(element, value) for element in example]
    return type(example)(value)


def pad_pixel_values(strips):
    """B of (C, P, L_i*P) -> (B, C, P, Lmax*P): each strip ends in zeros."""
    strips = [as_lists(strip) for strip in strips]
    width = max(len(strip[0][0]) for strip in strips)
    return [[[row + [0.0] * (width - len(row)) for row in channel] for channel in strip] for strip in strips]


def patch_attention_mask(tgt_sizes):
    """(B, 2) -> bool (B, 1, Lmax): True on the first h*w places of each slice."""
    lengths = [h * w for h, w in as_lists(tgt_sizes)]
    return [[[place < length for place in range(max(lengths))]] for length in lengths]


# 2. Each patch becomes a vector.


def patch_conv(pixel_values, weight, bias=None):
    """(B, C, H, W), (D, C, P, P), (D,) -> (B, D, H//P, W//P): a convolution whose stride is its kernel's side."""
    images, kernels = as_lists(pixel_values), as_lists(weight)
    side = len(kernels[0][0])
    flat_kernels = [flat_patch(kernel, 0, 0, side) for kernel in kernels]
    biases = [0.0] * len(kernels) if bias is None else as_lists(bias)
    outputs = list(zip(flat_kernels, biases, strict=True))
    batch = []
    for image in images:
        patches = cut(image, side)  # (H//P, W//P, C*P*P)
        batch.append([[[dot(patch, kernel) + b for patch in row] for row in patches] for kernel, b in outputs])
    return batch


def cut(image, side):
    """(C, H, W) -> (H//P, W//P, C*P*P): rows and columns that do not fill a patch are dropped."""
    rows, columns = len(image[0]) // side, len(image[0][0]) // side
    return [[flat_patch(image, r * side, c * side, side) for c in range(columns)] for r in range(rows)]


def flat_patch(image, top, left, side):
    """(C, H, W) -> (C*P*P,): the square patch with that corner, channel by channel and row by row."""
    return [x for channel in image for row in channel[top : top + side] for x in row[left : left + side]]


def dot(xs, ys):
    """The sum of products."""
    return sum(x * y for x, y in zip(xs, ys, strict=True))


# 3. Each patch finds its row of the position table.


def float32(x):
    """x rounded to the nearest float32."""
    return struct.unpack("<f", struct.pack("<f", x))[0]


def arange(start, end, step):
    """torch.arange in float32, bit for bit, as a CPU with vectors of LANES lanes computes it.

    Two vectors are filled at a time. The first lane of a vector is rounded to float32; the others count on from that rounded
    base. What does not fill two vectors is computed one by one. The ids of some sizes depend on it: the first is n = 49.
    """
    count = math.ceil((end - start) / step)
    in_vectors = count // (2 * LANES) * (2 * LANES)
    values = []
    for first in range(0, in_vectors, LANES):
        base = float32(start + step * first)
        values += [float32(base + step * lane) for lane in range(LANES)]
    return values + [float32(start + step * i) for i in range(in_vectors, count)]


def boundaries(num_patches_per_side, rule="arange"):
    """G -> (G-1,) or, for some G, (G,): where the buckets 1, 2, ... begin."""
    only_arange(rule)
    return arange(1 / num_patches_per_side, 1.0, 1 / num_patches_per_side)


def fractional_coords(num_patches, rule="arange"):
    """n -> (n,): where the patches of one axis begin, as fractions of it. Unlike G's, this step is a float32."""
    only_arange(rule)
    return arange(0.0, 1 - 1e-6, float32(1 / num_patches))


def only_arange(rule):
    """Released software has other rules as well; a port needs none of them."""
    if rule != "arange":
        raise NotImplementedError(f"this port has the rule 'arange' only, not {rule!r}")


def bucketize(values, boundaries, right=False):
    """(...), (K,) -> (...): how many boundaries lie below each value, or, with `right`, below or at it."""
    return count_below(as_lists(values), as_lists(boundaries), right)


def count_below(value, boundaries, or_at):
    """`bucketize` by bisection; the answer always lies in low..high."""
    if isinstance(value, list):
        return [count_below(element, boundaries, or_at) for element in value]
    low, high = 0, len(boundaries)
    while low < high:
        middle = (low + high) // 2
        if boundaries[middle] < value or (or_at and boundaries[middle] == value):
            low = middle + 1
        else:
            high = middle
    return low


def bucket_coords(num_patches, num_patches_per_side=70, rule="arange"):
    """n -> (n,): the row, or the column, of the position table for each patch of one axis."""
    return bucketize(fractional_coords(num_patches, rule), boundaries(num_patches_per_side, rule), right=True)


def position_ids(tgt_sizes, num_patches_per_side=70, rule="arange", mask=None):
    """(B, 2) -> (B, Lmax), or (B, K) with a mask of K places: ids in order at the True places, 0 elsewhere."""
    mask = patch_attention_mask(tgt_sizes) if mask is None else as_lists(mask)
    batch = []
    for (h, w), slice_mask in zip(as_lists(tgt_sizes), mask, strict=True):
        if sum(map(sum, slice_mask)) != h * w:
            raise ValueError(f"a slice of {h} x {w} patches has a mask of {sum(map(sum, slice_mask))} places")
        ids = iter(slice_ids(h, w, num_patches_per_side, rule))
        batch.append([next(ids) if is_patch else 0 for row in slice_mask for is_patch in row])
    return batch


def slice_ids(h, w, num_patches_per_side, rule):
    """(h*w,): the patches row by row."""
    rows, columns = (bucket_coords(n, num_patches_per_side, rule) for n in (h, w))
    return [row * num_patches_per_side + column for row in rows for column in columns]


def tgt_sizes_from_mask(mask):
    """bool (B, H, W) -> (B, 2): rows and columns of the rectangle of True places at the top left."""
    return [rectangle(slice_mask) for slice_mask in as_lists(mask)]


def rectangle(slice_mask):
    """bool (H, W) -> h, w, if the True places are such a rectangle."""
    h, w = sum(row[0] for row in slice_mask), sum(slice_mask[0])
    if any(place != (r < h and c < w) for r, row in enumerate(slice_mask) for c, place in enumerate(row)):
        raise ValueError("the True places are no rectangle from the top left")
    return [h, w]


def flattened_position_ids(tgt_sizes, num_patches_per_side=70, rule="arange"):
    """(B, 2) -> (B, Lmax): one axis of h*w patches in G*G buckets. The model does not use it; it is there to be compared."""
    ids = [bucket_coords(h * w, num_patches_per_side**2, rule) for h, w in as_lists(tgt_sizes)]
    return pad_sequence(ids, batch_first=True, padding_value=0)


# 4. The vector and the row of the table are added: the embeddings.


def embed(strips, tgt_sizes, model, rule="arange"):
    """B of (C, P, L_i*P), (B, 2) -> (B, Lmax, D).

    In a padded place the pixels are 0 and the id is 0, so it holds the bias plus the table's first row.
    """
    kernels, bias, table = (
        as_lists(model.weights[f"vpm.embeddings.{name}"])
        for name in ("patch_embedding.weight", "patch_embedding.bias", "position_embedding.weight")
    )
    features = patch_conv(pad_pixel_values(strips), kernels, bias)  # (B, D, 1, Lmax)
    ids = position_ids(tgt_sizes, model.config.vision.num_patches_per_side, rule)  # (B, Lmax)
    batch = []
    for channels, rows in zip(features, ids, strict=True):
        vectors = zip(*(channel[0] for channel in channels), strict=True)  # Lmax of (D,)
        batch.append([add(vector, table[row]) for vector, row in zip(vectors, rows, strict=True)])
    return batch


def add(xs, ys):
    """Element by element."""
    return [x + y for x, y in zip(xs, ys, strict=True)]
