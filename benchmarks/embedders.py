"""Who embeds a batch: npembed, the seed's code, transformers, ONNX Runtime, and the bare matrix product."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn
from transformers.models.idefics2.configuration_idefics2 import Idefics2VisionConfig
from transformers.models.idefics2.modeling_idefics2 import Idefics2VisionEmbeddings
from transformers.models.minicpmv4_6.configuration_minicpmv4_6 import MiniCPMV4_6VisionConfig
from transformers.models.minicpmv4_6.modeling_minicpmv4_6 import MiniCPMV4_6VisionEmbeddings

import npembed
from benchmarks.cases import CHANNELS, PATCH, Batch
from benchmarks.contest import OURS, PRODUCT, Contest, Contestant
from benchmarks.seed_code import seed_embeddings, seed_modules
from benchmarks.truth import Truth
from npembed import Model

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


def _minicpm_4_6(batch: Batch, model: Model, threads: int) -> Callable[[], Any]:
    """transformers' image processor lays the strips end to end: (1, C, P, (sum of L)*P)."""
    module = _load(MiniCPMV4_6VisionEmbeddings(MiniCPMV4_6VisionConfig(**_vision_sizes(model))), model)
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
