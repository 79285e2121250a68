"""Who embeds a batch (npembed, the seed's code, transformers, ONNX Runtime, the bare product), and what the result must be."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.models.idefics2.configuration_idefics2 import Idefics2VisionConfig
from transformers.models.idefics2.modeling_idefics2 import Idefics2VisionEmbeddings
from transformers.models.minicpmv4_6.configuration_minicpmv4_6 import MiniCPMV4_6VisionConfig
from transformers.models.minicpmv4_6.modeling_minicpmv4_6 import MiniCPMV4_6VisionEmbeddings

import npembed
from benchmarks.cases import CHANNELS, PATCH, Batch
from benchmarks.contest import OURS, PRODUCT, Contest, Contestant, DisagreementError
from npembed import Model, position_ids

Floats = NDArray[Any]

ROWS = 4096
"""Patches that are checked at a time, to bound the memory."""

UNIT_ROUNDOFF = 2.0**-24


def gamma(terms: int) -> float:
    """Higham's n*u / (1 - n*u), u of float32; what float64 rounds is far below its last digit."""
    return terms * UNIT_ROUNDOFF / (1 - terms * UNIT_ROUNDOFF)


class Truth:
    """x @ w.T, and |x| @ |w|.T for the bound, of every patch; made once, by none of the contestants' code."""

    def __init__(self, batch: Batch, model: Model) -> None:
        self.batch = batch
        self.model = model
        kernels, self.bias, self.table = (
            model.weights[f"vpm.embeddings.{name}"].astype(np.float64)
            for name in ("patch_embedding.weight", "patch_embedding.bias", "position_embedding.weight")
        )
        rows = kernels.reshape(len(kernels), -1)  # (D, C*P*P)
        self.blocks = []
        for start in range(0, len(batch.patches), ROWS):
            patches = batch.patches[start : start + ROWS].astype(np.float64)
            self.blocks.append((patches @ rows.T, (np.abs(patches) @ np.abs(rows).T).astype(np.float32)))

    def check_product(self, who: str, result: Floats) -> None:
        """(sum of L, D): the products alone."""
        start = 0
        for exact, magnitude in self.blocks:
            self._compare(who, start, result[start : start + len(exact)], exact, magnitude)
            start += len(exact)

    def check(self, who: str, result: Any, places: NDArray[np.bool_], rule: str) -> None:
        """Embeddings in any layout: (B, K, D), where `places` (B, K) says which are patches; the rest holds padding."""
        if result.shape != (*places.shape, len(self.bias)):
            raise DisagreementError(f"{who}: shape {tuple(result.shape)}, expected {(*places.shape, len(self.bias))}")
        flat = np.asarray(result).reshape(-1, len(self.bias))
        valid, padding = np.flatnonzero(places), np.flatnonzero(~places)
        ids = self._ids(rule)
        for start, (exact, magnitude) in zip(range(0, len(valid), ROWS), self.blocks, strict=True):
            of = slice(start, start + ROWS)
            positions = self.table[ids[of]]
            sums = magnitude + np.abs(self.bias) + np.abs(positions)
            self._compare(who, start, flat[valid[of]], exact + self.bias + positions, sums)
        for start in range(0, len(padding), ROWS):
            filler = np.abs(self.bias) + np.abs(self.table[0])
            self._compare(f"{who}'s padding", start, flat[padding[start : start + ROWS]], self.bias + self.table[0], filler)

    def _ids(self, rule: str) -> NDArray[np.int64]:
        """(sum of L,): every patch's row of the position table."""
        ids = position_ids(self.batch.sizes, self.model.config.vision.num_patches_per_side, rule)
        return np.concatenate([row[:length] for row, length in zip(ids, self.batch.lengths, strict=True)])

    def _compare(self, who: str, start: int, result: Floats, exact: Floats, magnitude: Floats) -> None:
        """(N, D), and what broadcasts to it twice: an error that names the first number out of bounds; NaN is."""
        allowed = gamma(self.batch.patches.shape[1] + 3) * magnitude
        wrong = np.argwhere(~(np.abs(result - exact) <= allowed))
        if len(wrong):
            row, channel = wrong[0]
            expected, most = (np.broadcast_to(array, result.shape)[row, channel] for array in (exact, allowed))
            raise DisagreementError(
                f"{who}: place {start + row}, channel {channel}: {result[row, channel]:.9g}, exactly {expected:.9g}; "
                f"float32 may be off by {most:.2g}"
            )


def seed_modules(kernels: NDArray[Any], bias: NDArray[Any], table: NDArray[Any]) -> tuple[nn.Conv2d, nn.Embedding]:
    """(D, C, P, P), (D,), (G*G, D) -> the article's two modules, which it makes in every call; here they are made once."""
    width, channels, patch_size, _ = kernels.shape
    conv = nn.Conv2d(channels, width, kernel_size=patch_size, stride=patch_size, padding="valid")
    conv.load_state_dict({"weight": torch.from_numpy(kernels), "bias": torch.from_numpy(bias)})
    return conv, nn.Embedding.from_pretrained(torch.from_numpy(table))


def seed_embeddings(strips: Sequence[Tensor], tgt_sizes: Tensor, conv: nn.Conv2d, positions: nn.Embedding) -> Tensor:
    """list of (C, P, L_i*P), (B, 2) -> (B, Lmax, D)."""
    pixels = seed_padding(strips)
    mask = seed_mask(tgt_sizes)
    patches = conv(pixels).flatten(2).transpose(1, 2)  # (B, D, 1, Lmax) -> (B, Lmax, D)
    return patches + positions(seed_position_ids(mask, tgt_sizes, int(positions.num_embeddings**0.5)))


def seed_padding(strips: Sequence[Tensor]) -> Tensor:
    """list of (C, P, L_i*P) -> (B, C, P, Lmax*P)."""
    channels, patch_size, _ = strips[0].shape
    columns = [strip.flatten(end_dim=1).permute(1, 0) for strip in strips]  # (L_i*P, C*P)
    padded = nn.utils.rnn.pad_sequence(columns, batch_first=True, padding_value=0.0)  # (B, Lmax*P, C*P)
    return padded.permute(0, 2, 1).reshape(len(strips), channels, patch_size, -1)


def seed_mask(tgt_sizes: Tensor) -> Tensor:
    """(B, 2) -> bool (B, 1, Lmax)."""
    longest = int(torch.max(tgt_sizes[:, 0] * tgt_sizes[:, 1]))
    mask = torch.zeros((len(tgt_sizes), 1, longest), dtype=torch.bool)
    for index in range(len(tgt_sizes)):
        mask[index, 0, : tgt_sizes[index][0] * tgt_sizes[index][1]] = True
    return mask


def seed_position_ids(mask: Tensor, tgt_sizes: Tensor, side: int) -> Tensor:
    """bool (B, 1, Lmax), (B, 2) -> int64 (B, Lmax)."""
    ids = torch.full((len(mask), mask.shape[2]), fill_value=0)
    boundaries = torch.arange(1 / side, 1.0, 1 / side)
    for index, places in enumerate(mask):
        h, w = tgt_sizes[index][0], tgt_sizes[index][1]
        rows, columns = (torch.bucketize(torch.arange(0, 1 - 1e-6, 1 / n), boundaries, right=True) for n in (h, w))
        ids[index][places.view(-1)] = (rows[:, None] * side + columns).flatten()
    return ids


Floats = NDArray[Any]
Places = NDArray[np.bool_]


@dataclass(frozen=True)
class Embedder:
    """One way to embed a batch.

    Attributes
    ----------
    make : callable
        (batch, model, threads) -> what is timed. It returns an array or a tensor (B, K, D).
    places : callable
        batch -> bool (B, K): which places of the result are patches.
    rule : str
        Whose position ids it has.
    """

    make: Callable[[Batch, Model, int], Callable[[], Any]]
    places: Callable[[Batch], Places]
    rule: str = "arange"


def padded(batch: Batch) -> Places:
    """(B, Lmax): each slice's patches first."""
    lengths = np.array(batch.lengths)
    return np.asarray(np.arange(lengths.max()) < lengths[:, None])


def packed(batch: Batch) -> Places:
    """(1, sum of L): no padding."""
    return np.ones((1, sum(batch.lengths)), dtype=np.bool_)


def gridded(batch: Batch) -> Places:
    """(B, Hmax*Wmax): pictures of one size, each slice in the top left corner."""
    return grid_mask(batch).reshape(len(batch.sizes), -1)


def grid_mask(batch: Batch) -> Places:
    """(B, Hmax, Wmax)."""
    sizes = np.array(batch.sizes)
    rows, columns = (np.arange(most) for most in sizes.max(axis=0))
    return (rows[:, None] < sizes[:, 0, None, None]) & (columns < sizes[:, 1, None, None])


def embedding_weights(model: Model) -> tuple[Floats, Floats, Floats]:
    """(D, C, P, P), (D,), (G*G, D), writable copies, as torch wants them."""
    names = ("patch_embedding.weight", "patch_embedding.bias", "position_embedding.weight")
    kernels, bias, table = (model.weights[f"vpm.embeddings.{name}"].copy() for name in names)
    return kernels, bias, table


def _npembed(batch: Batch, model: Model, threads: int) -> Callable[[], Any]:
    strips, sizes = batch.strips, np.array(batch.sizes)
    return lambda: npembed.embed(strips, sizes, model)


def _seed(batch: Batch, model: Model, threads: int) -> Callable[[], Any]:
    conv, positions = seed_modules(*embedding_weights(model))
    images, sizes = [torch.tensor(strip) for strip in batch.strips], torch.tensor(batch.sizes)

    def run() -> torch.Tensor:
        with torch.inference_mode():
            return seed_embeddings(images, sizes, conv, positions)

    return run


def _load(module: nn.Module, model: Model) -> nn.Module:
    """A module with a patch_embedding and a position_embedding, with the model's weights."""
    names = ("patch_embedding.weight", "patch_embedding.bias", "position_embedding.weight")
    weights = zip(names, embedding_weights(model), strict=True)
    module.load_state_dict({name: torch.from_numpy(array) for name, array in weights})
    return module.eval()


def _vision_sizes(model: Model) -> dict[str, Any]:
    vision = model.config.vision
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "num_channels", "image_size", "patch_size")
    return {name: getattr(vision, name) for name in names}


def minicpm_4_6_module(model: Model) -> nn.Module:
    """transformers' embeddings of MiniCPM-V 4.6 with the model's weights."""
    return _load(MiniCPMV4_6VisionEmbeddings(MiniCPMV4_6VisionConfig(**_vision_sizes(model))), model)


def _minicpm_4_6(batch: Batch, model: Model, threads: int) -> Callable[[], Any]:
    """transformers' image processor lays the strips end to end: (1, C, P, (sum of L)*P)."""
    module = minicpm_4_6_module(model)
    pixels = torch.tensor(np.concatenate(batch.strips, axis=-1))[None]
    sizes = torch.tensor(batch.sizes, dtype=torch.int32)

    def run() -> Any:
        with torch.inference_mode():
            return module(pixels, target_sizes=sizes)

    return run


def _idefics2(batch: Batch, model: Model, threads: int) -> Callable[[], Any]:
    """Pictures padded to one size, (B, C, Hmax*P, Wmax*P), and the mask of their patches."""
    module = _load(Idefics2VisionEmbeddings(Idefics2VisionConfig(**_vision_sizes(model))), model)
    mask = grid_mask(batch)
    pixels = np.zeros((len(mask), CHANNELS, mask.shape[1] * PATCH, mask.shape[2] * PATCH), dtype=np.float32)
    for row, picture in zip(pixels, batch.pictures, strict=True):
        row[:, : picture.shape[1], : picture.shape[2]] = picture
    inputs = torch.tensor(pixels), torch.tensor(mask)

    def run() -> Any:
        with torch.inference_mode():
            return module(*inputs)

    return run


def _onnxruntime(batch: Batch, model: Model, threads: int) -> Callable[[], Any]:
    """Ready position ids, and pixels that are padded already: (B, C, P, Lmax*P)."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(onnx_graph(model), options, providers=["CPUExecutionProvider"])
    pixels = np.zeros((len(batch.sizes), CHANNELS, PATCH, max(batch.lengths) * PATCH), dtype=np.float32)
    for row, strip in zip(pixels, batch.strips, strict=True):
        row[..., : strip.shape[-1]] = strip
    inputs = {"pixel_values": pixels, "position_ids": npembed.position_ids(batch.sizes)}
    return lambda: session.run(None, inputs)[0]


def onnx_graph(model: Model) -> bytes:
    """Conv, its result as (B, Lmax, D), plus Gather from the position table."""
    kernels, bias, table = embedding_weights(model)
    make = onnx.helper.make_node
    nodes = [
        make("Conv", ["pixel_values", "kernels", "bias"], ["features"], strides=[PATCH, PATCH]),  # (B, D, 1, Lmax)
        make("Squeeze", ["features", "height"], ["columns"]),
        make("Transpose", ["columns"], ["rows"], perm=[0, 2, 1]),
        make("Gather", ["table", "position_ids"], ["positions"]),
        make("Add", ["rows", "positions"], ["embeddings"]),
    ]
    constants = {"kernels": kernels, "bias": bias, "table": table, "height": np.array([2], dtype=np.int64)}
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "embeddings",
        [
            value("pixel_values", onnx.TensorProto.FLOAT, ["B", CHANNELS, PATCH, "W"]),
            value("position_ids", onnx.TensorProto.INT64, ["B", "L"]),
        ],
        [value("embeddings", onnx.TensorProto.FLOAT, ["B", "L", len(bias)])],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opset = onnx.helper.make_opsetid("", 17)
    return bytes(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString())


EMBEDDERS = {
    OURS: Embedder(_npembed, padded),
    "seed-torch": Embedder(_seed, padded),
    "minicpm-4.6": Embedder(_minicpm_4_6, packed, rule="quotient"),
    "idefics2": Embedder(_idefics2, gridded, rule="step"),
    "onnxruntime": Embedder(_onnxruntime, padded),
}


def _product(batch: Batch, model: Model) -> Callable[[], Any]:
    """(sum of L, C*P*P) by (C*P*P, D), once."""
    kernels = model.weights["vpm.embeddings.patch_embedding.weight"]
    patches, matrix = batch.patches, np.ascontiguousarray(kernels.reshape(len(kernels), -1).T)
    return lambda: np.matmul(patches, matrix)


def embedding_contest(batch: Batch, model: Model, threads: int, names: Iterable[str] = EMBEDDERS) -> Contest:
    """These and the product, on one batch."""
    truth = Truth(batch, model)
    runs = {name: EMBEDDERS[name].make(batch, model, threads) for name in names}
    runs[PRODUCT] = _product(batch, model)

    def check(name: str, result: Any) -> None:
        if name == PRODUCT:
            truth.check_product(name, result)
        else:
            truth.check(name, result, EMBEDDERS[name].places(batch), EMBEDDERS[name].rule)

    return Contest([Contestant(name, run) for name, run in runs.items()], check)
