"""ONNX Runtime on the CPU with the graphs turned to float16 by its own converter."""

from typing import Any

from onnx_graphs import GraphPort
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime_float32 import session

PRECISION = "float16"


def half(graph: Any) -> Any:
    """What runs the graph in float16; inputs and result stay float32."""
    return session(convert_float_to_float16(graph, keep_io_types=True))


_PORT = GraphPort(half)
embed, encode = _PORT.embed, _PORT.encode
