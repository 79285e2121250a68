"""Which releases are checked: one record each. Their port modules are in benchmarks/port_modules/."""

from dataclasses import dataclass

TORCH = "torch==2.13.0"
"""Pinned: the index's own choice for Linux brings gigabytes of CUDA libraries."""


@dataclass(frozen=True)
class Port:
    """One path of a release that is checked.

    Attributes
    ----------
    module : str
        In benchmarks/port_modules/.
    title : str
        For the page: which of the release's models, or which of its settings.
    family : str
        Its key in `npembed.FAMILIES`.
    note : str
        What was found by hand about how it departs; on the page where it does.
    """

    module: str
    title: str
    family: str
    note: str = ""


@dataclass(frozen=True)
class Release:
    """One release.

    Attributes
    ----------
    name : str
        For the page, for `--only`, and of its environment's folder.
    package : str
        The distribution whose version the page says.
    requirements : tuple of str
        What pip installs, beside npembed.
    ports : tuple of Port
    """

    name: str
    package: str
    requirements: tuple[str, ...]
    ports: tuple[Port, ...]


_CAUSAL = (
    "With sdpa, the default attention, the tower is causal where no patch of the batch is masked; eager attention is right "
    "(SPEC 13.7)."
)
_THREE_AT_ONCE = (
    "Three faults at once in the tower: gelu as x·σ(1.702·x), the eps of post_layernorm left at MLX's 1e-5, and no mask in the "
    "attention, so padded places take part."
)
_FIRST_PLACES = (
    "The ids of a slice that is narrower than its canvas go to the first places, not to those of the mask. The eps of "
    "post_layernorm is left at MLX's 1e-5, and the attention has no mask."
)
_OWN_EPS = "The norms of the window merger have eps 1e-6, whatever the config says; 1e-6 is the default."
_GROWING = (
    "A compiled graph of any number of places that is first run on one place gives wrong numbers for 16 and more from then on, "
    "in float32 and in bfloat16. Compiled anew, or first run on 16 places, it is right: the call above alone does not show it."
)

_OF_TRANSFORMERS = (
    Port("transformers_idefics2", "Idefics2", "idefics2"),
    Port("transformers_idefics3", "Idefics3", "idefics3"),
    Port("transformers_idefics3_bfloat16", "Idefics3 in bfloat16", "idefics3"),
    Port("transformers_idefics3_float16", "Idefics3 in float16", "idefics3"),
    Port("transformers_smolvlm", "SmolVLM", "smolvlm"),
    Port("transformers_phi4_multimodal", "Phi-4-multimodal", "phi-4-multimodal", _CAUSAL),
    Port("transformers_minicpmv4_6", "MiniCPM-V 4.6", "minicpm-v-4.6"),
    Port("transformers_siglip", "SigLIP", "siglip"),
)
"""The same of every version: one that lacks a model says so as its port is imported."""

_OF_MLX_VLM = (
    Port("mlx_idefics2", "Idefics2", "idefics2", _THREE_AT_ONCE),
    Port("mlx_idefics3", "Idefics3", "idefics3", _FIRST_PLACES),
    Port("mlx_smolvlm", "SmolVLM", "smolvlm", _FIRST_PLACES),
    Port("mlx_minicpmo", "MiniCPM-o", "minicpm-o-2.6"),
    Port("mlx_minicpmv4_6", "MiniCPM-V 4.6", "minicpm-v-4.6", _OWN_EPS),
)

_OF_ONNXRUNTIME = (
    Port("onnxruntime_float32", "float32", "minicpm-v-2.6"),
    Port("onnxruntime_float16", "float16, by its converter", "minicpm-v-2.6"),
    Port("onnxruntime_int8", "int8, by its dynamic quantizer", "minicpm-v-2.6"),
)

_OF_OPENVINO = (
    Port("openvino_float32", "held to float32", "minicpm-v-2.6", _GROWING),
    Port("openvino_default", "in the precision that it chooses", "minicpm-v-2.6", _GROWING),
)


def _transformers(version: str) -> Release:
    pin = f"=={version}" if version != "newest" else ""
    return Release(f"transformers-{version}", "transformers", (f"transformers{pin}", TORCH), _OF_TRANSFORMERS)


RELEASES: tuple[Release, ...] = (
    *map(_transformers, ("4.54.1", "4.55.2", "4.57.6", "5.12.0", "5.23.0", "newest")),
    Release("mlx-vlm", "mlx-vlm", ("mlx[cpu]", "mlx-vlm", TORCH), _OF_MLX_VLM),
    Release("onnxruntime", "onnxruntime", ("onnxruntime", "onnx"), _OF_ONNXRUNTIME),
    Release("openvino", "openvino", ("openvino", "onnx"), _OF_OPENVINO),
    Release("torch", "torch", (TORCH,), (Port("torch_functions", "its own functions, the seed's steps", "minicpm-v-2.6"),)),
)


def releases(names: list[str] | None) -> tuple[Release, ...]:
    """Those of these names, all without, or an error that lists them."""
    known = {release.name: release for release in RELEASES}
    for name in names or ():
        if name not in known:
            raise ValueError(f"--only must be one of {', '.join(known)}; got {name!r}")
    return tuple(release for release in RELEASES if not names or release.name in names)
