"""OpenVINO on the CPU as it comes: it chooses the precision by the processor, and is judged by the one that it chose."""

from typing import Any

from onnx_graphs import GraphPort, tower_graph
from openvino_float32 import CORE

import npembed

NAMES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


def _compiled(graph: Any) -> Any:
    return CORE.compile_model(CORE.read_model(graph.SerializeToString()), "CPU", {"INFERENCE_NUM_THREADS": 1})


def runs(graph: Any) -> Any:
    """What runs the graph."""
    compiled = _compiled(graph)
    return lambda inputs: compiled(inputs)[0].copy()


_CONFIG = npembed.FAMILIES["minicpm-v-2.6"].small()
_CHOSEN = _compiled(tower_graph(npembed.random_model(_CONFIG, until="hidden"))).get_property("INFERENCE_PRECISION_HINT")
PRECISION = NAMES[_CHOSEN.get_type_name()]

_PORT = GraphPort(runs)
embed, encode = _PORT.embed, _PORT.encode
