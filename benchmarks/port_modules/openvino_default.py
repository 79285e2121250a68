"""OpenVINO on the CPU as it comes: it chooses the precision by the processor."""

from typing import Any

from onnx_graphs import GraphPort
from openvino_float32 import CORE

PRECISION = "float32"


def compiled(graph: Any) -> Any:
    """What runs the graph."""
    runs = CORE.compile_model(CORE.read_model(graph.SerializeToString()), "CPU", {"INFERENCE_NUM_THREADS": 1})
    return lambda inputs: runs(inputs)[0]


_PORT = GraphPort(compiled)
embed, encode = _PORT.embed, _PORT.encode
