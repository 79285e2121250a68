"""The package asks for NumPy and SciPy alone; what needs more is imported where it is used, or says which extra to install."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXTRAS = ("torch", "PIL", "safetensors", "ml_dtypes", "typer", "rich", "hypothesis", "pytest", "transformers")
EXTRAS += ("gguf", "huggingface_hub", "fsspec", "dask", "distributed", "pyarrow", "jinja2", "pillow_heif")

BLOCKED = f"""
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {EXTRAS!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
"""


def run(code: str, *, blocked: bool = True) -> subprocess.CompletedProcess[str]:
    """The code in a Python of its own, in which no extra can be imported."""
    code = (BLOCKED if blocked else "") + code
    return subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)


def test_every_array_function_runs_on_numpy_and_scipy_alone() -> None:
    ran = run(
        """
import numpy as np
import npembed
from npembed import *

tiny = Config(vision=VisionConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
                                  patch_size=2, image_size=10), query_num=2, embed_dim=128)
merging = FAMILIES["minicpm-v-4.6"].small()
sizes, mask = [[2, 2], [1, 2]], np.ones((1, 2, 3), dtype=bool)
strips = [np.ones((3, 2, 8), dtype=np.float32), np.ones((3, 2, 4), dtype=np.float32)]
model = random_model(tiny, until="tokens")
embeddings = embed(strips, sizes, model)
hidden = encode(embeddings, sizes, model)
tokens = resample(hidden, sizes, model)
called = {
    "pad_sequence": pad_sequence([[1], [1, 2]]),
    "pad_pixel_values": pad_pixel_values(strips),
    "patch_attention_mask": patch_attention_mask(sizes),
    "patch_conv": patch_conv(pad_pixel_values(strips), model.weights["vpm.embeddings.patch_embedding.weight"]),
    "bucketize": bucketize([0.5], [0.2]),
    "tgt_sizes_from_mask": tgt_sizes_from_mask(mask),
    "randomized_positions": randomized_positions(3),
    "flattened_position_ids": flattened_position_ids(sizes),
    "embed": embeddings, "encode": hidden, "resample": tokens,
    "image_placeholder": image_placeholder(None, config=tiny),
    "image_bounds": image_bounds([1, 5, 2], [1], [2]),
    "scatter_image_embeds": scatter_image_embeds(np.zeros((4, 128)), tokens[:1], [[1, 3]]),
    "run": run(strips, sizes, model), "FAMILIES": FAMILIES, "token_places": token_places([1, 5, 5], 5, [2]),
    "merge_patches": merge_patches(np.ones((1, 4, 16)), [[4, 4]], random_model(merging, until="tokens")),
    "random_model": model, "Model": model, "Config": tiny, "SlicingConfig": tiny.slicing, "VisionConfig": tiny.vision,
    "MINICPM_V_2_6": MINICPM_V_2_6, "RULES": RULES, "PIXEL_RULES": PIXEL_RULES, "TIME_RULES": TIME_RULES,
    "choose_frames": choose_frames(90, 30.0, FAMILIES["minicpm-v-4.5"].small()),
    "run": run(strips, sizes, model),
}
for rule in RULES:
    bucket_coords(5, rule=rule)
    if rule != "exact":
        fractional_coords(5, rule), boundaries(5, rule)
    if rule != "digitize":
        position_ids(sizes, rule=rule)
called |= dict.fromkeys(("bucket_coords", "fractional_coords", "boundaries", "position_ids"))
print(sorted(set(npembed.__all__) - set(called)))
print(sorted(name for name in sys.modules if name.partition(".")[0] in ("torch", "PIL", "safetensors", "ml_dtypes")))
"""
    )
    assert ran.stderr == ""
    assert ran.stdout.splitlines() == ["['load_model', 'read_config', 'slice_image']", "[]"]


def test_a_checkpoint_is_read_without_the_extras(data: Path) -> None:
    folder = str(data / "tiny-minicpmv")
    ran = run(f"import npembed; print(npembed.read_config({folder!r}).embed_dim, npembed.load_model({folder!r}))")
    words = "Model(hidden_size=48, num_patches_per_side=70, float32, stages: embeddings, hidden, tokens)"
    assert (ran.stdout, ran.stderr) == (f"256 {words}\n", "")


def test_importing_the_package_imports_neither_scipy_nor_an_extra() -> None:
    watched = ("scipy", *EXTRAS)
    code = "import sys, json, npembed; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    ran = run(code, blocked=False)
    assert ran.stderr == ""
    assert set(json.loads(ran.stdout)).isdisjoint(watched)


def test_what_takes_long_to_import_is_there_when_it_is_asked_for() -> None:
    later = ("conformance", "corpus", "weights")
    ran = run(
        f"""
import sys, npembed
later = {later!r}
print(sorted(name for name in sys.modules if name.startswith(tuple("npembed." + name for name in later))))
print(set(dir(npembed)) >= {{*later, *npembed.__all__}})
print([getattr(npembed, name).__name__ for name in later], npembed.load_model is npembed.weights.load_model)
print("load_model" in vars(npembed), hasattr(npembed, "wheights"))
"""
    )
    assert (ran.stdout, ran.stderr) == (f"[]\nTrue\n{[f'npembed.{name}' for name in later]} True\nTrue False\n", "")


MISSING = [
    ("npembed.corpus.build([], 'out', npembed.random_model())", "a corpus needs pyarrow: pip install 'npembed[corpus]'"),
    ("npembed.corpus.engine.cluster(1, None).__enter__()", "a corpus needs Dask: pip install 'npembed[corpus]'"),
    (
        "npembed.corpus.sources.list_pictures(['s3://b/a'])",
        "corpus: s3://b/a needs another package: fsspec: pip install 'npembed[corpus]'",
    ),
    ("npembed.slice_image(np.zeros((9, 9, 3), dtype=np.uint8))", "pictures need Pillow: pip install 'npembed[image]'"),
    ("npembed.support.pictures.read_image('a.png')", "pictures need Pillow: pip install 'npembed[image]'"),
    ("npembed.load_model(GGUF)", "GGUF files need the package gguf: pip install 'npembed[gguf]'"),
    (
        "npembed.load_model('owner/name')",
        "reading from the Hub needs huggingface_hub: pip install 'npembed[hub]'; "
        "and no folder or file here is called owner/name",
    ),
    ("npembed.load_model('s3://bucket/name')", "reading from URLs needs fsspec: pip install 'npembed[url]'"),
    ("npembed.pages.page.render('base.html.j2')", "pages need Jinja: pip install 'npembed[pages]'"),
]


@pytest.mark.parametrize(("call", "message"), MISSING, ids=[row[0].partition("(")[0] for row in MISSING])
def test_what_needs_an_extra_says_which(call: str, message: str, data: Path) -> None:
    ran = run(
        f"""
import numpy as np
import npembed, npembed.corpus, npembed.support.pictures, npembed.pages.page
GGUF = {str(data / "gguf" / "minicpm-v-2_6.f16.gguf")!r}
try:
    {call}
except ImportError as error:
    print(error)
"""
    )
    assert (ran.stdout, ran.stderr) == (message + "\n", "")
