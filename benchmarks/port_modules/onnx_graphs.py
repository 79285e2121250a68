"""The embeddings and the tower as ONNX graphs, written node by node, for the runtimes that read them."""

from functools import lru_cache
from typing import Any

import numpy as np
import onnx

import npembed
from npembed.conformance.adapters import slice_by_slice
from npembed.conformance.adapters.layouts import checked_sizes
from npembed.support.typing import Array

OPSET = 20
"""The first with gelu's tanh form."""

IR_VERSION = 9


class Graph:
    """A graph as it grows: each call adds a node and gives the name of its result."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, Array] = {}

    def constant(self, array: Any) -> str:
        """The name of an array in the file; floats are float32."""
        name, kind = f"constant_{len(self.constants)}", np.asarray(array).dtype.kind
        self.constants[name] = np.array(array, dtype=np.float32 if kind == "f" else np.int64, order="C")
        return name

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """The name of the node's result."""
        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def linear(self, x: str, weight: Array, bias: Array) -> str:
        """x @ weight.T + bias."""
        return self.add("Add", self.add("MatMul", x, self.constant(weight.T)), self.constant(bias))

    def norm(self, x: str, weight: Array, bias: Array, eps: float) -> str:
        """The layer norm over the last axis."""
        return self.add("LayerNormalization", x, self.constant(weight), self.constant(bias), axis=-1, epsilon=eps)

    def finish(self, result: str, shape: list[Any], **inputs: tuple[int, list[Any]]) -> Any:
        """The model; an input is its type and its shape."""
        value = onnx.helper.make_tensor_value_info
        graph = onnx.helper.make_graph(
            [*self.nodes, onnx.helper.make_node("Identity", [result], ["result"])],
            "tower",
            [value(name, kind, sizes) for name, (kind, sizes) in inputs.items()],
            [value("result", onnx.TensorProto.FLOAT, shape)],
            [onnx.numpy_helper.from_array(array, name) for name, array in self.constants.items()],
        )
        return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


@lru_cache(maxsize=4)
def embeddings_graph(model: npembed.Model) -> Any:
    """pixel_values (B, C, P, W), position_ids (B, L) -> (B, L, D)."""
    vision, graph = model.config.vision, Graph()
    names = ("patch_embedding.weight", "patch_embedding.bias", "position_embedding.weight")
    kernels, bias, table = (graph.constant(model.weights[f"{model.tower}embeddings.{name}"]) for name in names)
    side = vision.patch_size
    features = graph.add("Conv", "pixel_values", kernels, bias, strides=[side, side])  # (B, D, 1, L)
    columns = graph.add("Squeeze", features, graph.constant(np.array([2], dtype=np.int64)))
    rows = graph.add("Transpose", columns, perm=[0, 2, 1])
    result = graph.add("Add", rows, graph.add("Gather", table, "position_ids"))
    pixels = onnx.TensorProto.FLOAT, ["B", vision.num_channels, side, "W"]
    return graph.finish(
        result, ["B", "L", vision.hidden_size], pixel_values=pixels, position_ids=(onnx.TensorProto.INT64, ["B", "L"])
    )


@lru_cache(maxsize=4)
def tower_graph(model: npembed.Model) -> Any:
    """x (L, D) -> (L, D): every layer and the last norm of one slice."""
    graph, vision = Graph(), model.config.vision
    x, width = "x", vision.hidden_size
    for number in range(getattr(model.config, "encoder_layers", vision.num_hidden_layers)):
        layer = f"{model.tower}encoder.layers.{number}"
        normed = graph.norm(x, *model.pair(f"{layer}.layer_norm1"), vision.layer_norm_eps)
        x = graph.add("Add", x, _attention(graph, normed, model, f"{layer}.self_attn"))
        normed = graph.norm(x, *model.pair(f"{layer}.layer_norm2"), vision.layer_norm_eps)
        inner = graph.add("Gelu", graph.linear(normed, *model.pair(f"{layer}.mlp.fc1")), approximate="tanh")
        x = graph.add("Add", x, graph.linear(inner, *model.pair(f"{layer}.mlp.fc2")))
    x = graph.norm(x, *model.pair(f"{model.tower}post_layernorm"), vision.layer_norm_eps)
    return graph.finish(x, ["L", width], x=(onnx.TensorProto.FLOAT, ["L", width]))


def _attention(graph: Graph, x: str, model: npembed.Model, name: str) -> str:
    heads, width = model.config.vision.num_attention_heads, model.config.vision.hidden_size
    split = graph.constant(np.array([0, heads, width // heads], dtype=np.int64))
    q, k, v = (graph.add("Reshape", graph.linear(x, *model.pair(f"{name}.{part}_proj")), split) for part in "qkv")
    q, v = (graph.add("Transpose", part, perm=[1, 0, 2]) for part in (q, v))
    product = graph.add("MatMul", q, graph.add("Transpose", k, perm=[1, 2, 0]))
    scores = graph.add("Mul", product, graph.constant(np.float32((width // heads) ** -0.5)))
    mixed = graph.add("MatMul", graph.add("Softmax", scores, axis=-1), v)
    joined = graph.add("Transpose", mixed, perm=[1, 0, 2])
    flat = graph.add("Reshape", joined, graph.constant(np.array([0, width], dtype=np.int64)))
    return graph.linear(flat, *model.pair(f"{name}.out_proj"))


class GraphPort:
    """A runtime that runs the two graphs; the position ids are npembed's."""

    def __init__(self, compile_graph: Any) -> None:
        self._compiled = lru_cache(maxsize=64)(lambda make, model: compile_graph(make(model)))  # kept, as in real use
        self._encode = slice_by_slice(
            lambda places, size, model: self._compiled(tower_graph, model)({"x": np.asarray(places, dtype=np.float32)})
        )

    def embed(self, strips: Any, tgt_sizes: Any, model: npembed.Model, rule: str | None = None) -> Array:
        """As npembed's."""
        pixels = np.asarray(npembed.pad_pixel_values(strips), dtype=np.float32)
        ids = npembed.position_ids(
            checked_sizes(strips, tgt_sizes), model.config.vision.num_patches_per_side, rule or model.config.family.rule
        )
        return np.asarray(self._compiled(embeddings_graph, model)({"pixel_values": pixels, "position_ids": ids}))

    def encode(self, embeddings: Any, tgt_sizes: Any, model: npembed.Model) -> Any:
        """As npembed's."""
        return self._encode(embeddings, tgt_sizes, model)
