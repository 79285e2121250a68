"""ONNX Runtime on the CPU with the matrices turned to int8 by its own dynamic quantizer."""

import tempfile
from pathlib import Path
from typing import Any

import onnx
from onnx_graphs import GraphPort
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime_float32 import session

PRECISION = "int8"


def quantized(graph: Any) -> Any:
    """What runs the graph with 8-bit weights, a scale for each column; activations are quantized as they come."""
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        onnx.save(graph, before)
        quantize_dynamic(before, after, per_channel=True, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul"])
        return session(onnx.load(after))


encode = GraphPort(quantized).encode
