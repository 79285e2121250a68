"""ONNX Runtime on the CPU, as a port of the embeddings and of the tower, in float32."""

from typing import Any

import onnxruntime
from onnx_graphs import GraphPort

PRECISION = "float32"


def session(graph: Any) -> Any:
    """What runs the graph."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    runs = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda inputs: runs.run(None, inputs)[0]


_PORT = GraphPort(session)
embed, encode = _PORT.embed, _PORT.encode
