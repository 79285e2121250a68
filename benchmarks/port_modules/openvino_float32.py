"""OpenVINO on the CPU, as a port of the embeddings and of the tower, held to float32."""

from typing import Any

import openvino
from onnx_graphs import GraphPort

PRECISION = "float32"
CORE = openvino.Core()


def compiled(graph: Any) -> Any:
    """What runs the graph."""
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    runs = CORE.compile_model(CORE.read_model(graph.SerializeToString()), "CPU", options)
    return lambda inputs: runs(inputs)[0].copy()


_PORT = GraphPort(compiled)
embed, encode = _PORT.embed, _PORT.encode
