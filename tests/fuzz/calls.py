"""Every public function with arguments that it cannot take: it must say so by name, in an error of one line."""

import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import npembed
from npembed import FAMILIES, Config, VisionConfig, random_model

TINY = Config(
    vision=VisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, patch_size=2, image_size=10
    ),
    slicing=npembed.SlicingConfig(scale_resolution=8, patch_size=2),
    query_num=2,
    embed_dim=128,
)
SIZES = [[2, 2], [1, 2]]
STRIPS = [np.ones((3, 2, 8), dtype=np.float32), np.ones((3, 2, 4), dtype=np.float32)]
CHECKPOINT = Path(__file__).parents[1] / "data" / "tiny-minicpmv"


class Trap:
    """An object whose every special method raises."""

    def _raise(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("a trap\x1b[2J\nof two lines")

    __array__ = __len__ = __iter__ = __index__ = __int__ = __float__ = __repr__ = __str__ = __getitem__ = __eq__ = _raise  # type: ignore[assignment]
    __hash__ = None  # type: ignore[assignment]


class Liar:
    """An array's interface without an array behind it."""

    __array_interface__ = {"shape": (3,), "typestr": "<f4", "data": None, "version": 3}  # noqa: RUF012


def itself() -> list[Any]:
    """A list that holds itself."""
    found: list[Any] = []
    found.append(found)
    return found


def objects(value: Any) -> Any:
    array = np.empty(2, dtype=object)
    array[0] = array[1] = value
    return array


HOSTILE: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "True": lambda: True,
    "a text": lambda: "text",
    "a long text": lambda: "x\n" * 50_000,
    "bytes": lambda: b"bytes",
    "a dict": lambda: {"a": 1},
    "an empty list": list,
    "a list in a list": lambda: [[]],
    "ragged": lambda: [[1, 2], [3]],
    "a list that holds itself": itself,
    "an object": object,
    "a trap": Trap,
    "a list of traps": lambda: [Trap(), Trap()],
    "a liar": Liar,
    "a class": lambda: Trap,
    "a function": lambda: len,
    "NaN": lambda: float("nan"),
    "infinity": lambda: float("inf"),
    "-1": lambda: -1,
    "0": lambda: 0,
    "0.5": lambda: 0.5,
    "2**63": lambda: 2**63,
    "10**400": lambda: 10**400,
    "10**5000": lambda: 10**5000,
    "-10**5000 in a list": lambda: [[-(10**5000), 1]],
    "a complex number": lambda: 1j,
    "0-d": lambda: np.array(3.5),
    "0-d of objects": lambda: np.array(None),
    "objects": lambda: objects(Trap()),
    "objects that are huge": lambda: objects(10**5000),
    "texts": lambda: np.array(["a", "b"]),
    "dates": lambda: np.array(["2020-01-01"], dtype="datetime64[D]"),
    "records": lambda: np.zeros(2, dtype=[("a", int), ("b", float)]),
    "complex": lambda: np.ones((2, 2), dtype=complex),
    "negative": lambda: np.full((2, 2), -3),
    "unsigned": lambda: np.full((2, 2), 2**64 - 1, dtype=np.uint64),
    "large": lambda: np.full((2, 2), 2**62),
    "empty": lambda: np.zeros((0, 2)),
    "seven axes": lambda: np.ones((1,) * 7),
    "NaN in floats": lambda: np.full((2, 2), np.nan),
    "infinity in floats": lambda: np.full((2, 2), np.inf),
    "a million fractions": lambda: np.full((500_000, 2), 0.5),
    "a million whole floats": lambda: np.ones((500_000, 2)),
    "a generator": lambda: iter(()),
    "a set": lambda: {1, 2},
    "a date in a list": lambda: [np.datetime64("2020-01-01")],
    "masked": lambda: np.ma.masked_array([[1, 2]], mask=[[True, False]]),
}
"""Each value by its name, made anew for each call."""


def bases() -> dict[str, tuple[Any, ...]]:
    """Arguments that each public function takes, all of its positional ones."""
    model = random_model(TINY, until="tokens")
    merging = FAMILIES["minicpm-v-4.6"].small()
    embeddings = npembed.embed(STRIPS, SIZES, model)
    hidden = npembed.encode(embeddings, SIZES, model)
    tokens = npembed.resample(hidden, SIZES, model)
    pixels, kernels = npembed.pad_pixel_values(STRIPS), model.weights["vpm.embeddings.patch_embedding.weight"]
    return {
        "Config": (TINY.vision, TINY.slicing, 2, 128, False, True, TINY.family),
        "Model": (TINY, dict(model.weights)),
        "SlicingConfig": (448, 9, 14, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), True),
        "VisionConfig": (8, 8, 1, 2, 3, 10, 2, 1e-6),
        "boundaries": (5, "arange"),
        "bucket_coords": (5, 70, "arange"),
        "choose_frames": (100, 25.0, TINY),
        "bucketize": ([0.1, 0.5], [0.2], False),
        "embed": (STRIPS, SIZES, model, "arange"),
        "encode": (embeddings, SIZES, model),
        "flattened_position_ids": (SIZES, 70, "arange"),
        "fractional_coords": (5, "arange"),
        "image_bounds": ([1, 5, 2], [1], [2]),
        "image_placeholder": ((2, 1), 0, TINY, None),
        "load_model": (str(CHECKPOINT), "embeddings"),
        "merge_patches": (np.ones((1, 4, 16)), [[4, 4]], random_model(merging, until="tokens")),
        "pad_pixel_values": (STRIPS,),
        "pad_sequence": ([[1], [1, 2]], False, 0.0, "right"),
        "patch_attention_mask": (SIZES,),
        "patch_conv": (pixels, kernels, np.zeros(8)),
        "position_ids": (SIZES, 70, "arange", None),
        "random_model": (TINY, 0, "embeddings"),
        "randomized_positions": (3, 2000, None),
        "read_config": (str(CHECKPOINT),),
        "resample": (hidden, SIZES, model, None),
        "run": (STRIPS, SIZES, model, "embeddings", "arange"),
        "scatter_image_embeds": (np.zeros((4, 128)), tokens[:1], [[1, 3]]),
        "slice_image": (np.zeros((9, 9, 3), dtype=np.uint8), TINY, "pillow"),
        "tgt_sizes_from_mask": (np.ones((1, 2, 3), dtype=bool),),
        "token_places": ([1, 5, 5], 5, [2]),
    }


OTHER_NAMES: dict[str, tuple[str, ...]] = {"run": ("embed", "position_ids"), "embed": ("position_ids",)}
"""Further names that a function's message may begin with, where another says it."""


def functions() -> list[str]:
    """The names of the public functions and classes."""
    return sorted(name for name in npembed.__all__ if callable(getattr(npembed, name)))


def fault(name: str, args: tuple[Any, ...]) -> str | None:
    """What is wrong with how the function took the arguments; None if it gave a result or refused well."""
    try:
        with np.errstate(all="ignore"):
            getattr(npembed, name)(*args)
    except (ValueError, TypeError) as error:
        return wrong_words(name, str(error))
    except ImportError:
        return None
    except Exception as error:
        return f"{name} raises {type(error).__name__}: {str(error)[:200]!r}"
    return None


def wrong_words(name: str, message: str) -> str | None:
    """What is wrong with a message; None if it names the function and is one line."""
    if not any(message.startswith(f"{who}: ") for who in (name, *OTHER_NAMES.get(name, ()))):
        return f"{name} is not named: {message[:200]!r}"
    if len(message) > 1200 or not message.isprintable():
        return f"{name} says more than a line: {message[:200]!r} ... ({len(message)} characters)"
    return None


_BASES: dict[str, tuple[Any, ...]] = {}


def hostile_call(rng: random.Random) -> tuple[list[str], Callable[[], int]]:
    """A function, with one to three hostile arguments."""
    _BASES.update(_BASES or bases())
    name = rng.choice(sorted(_BASES))
    args = list(_BASES[name])
    chosen = {rng.randrange(len(args)): rng.choice(sorted(HOSTILE)) for _ in range(rng.choice((1, 1, 2, 3)))}
    for place, what in chosen.items():
        args[place] = HOSTILE[what]()

    def act() -> int:
        found = fault(name, tuple(args))
        if found is None:
            return 0
        print(found, file=sys.stderr)
        return 70

    return [name, *(f"{place}: {what}" for place, what in chosen.items())], act
