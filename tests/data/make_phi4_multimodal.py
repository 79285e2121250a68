"""Writes phi4_multimodal.json: what transformers' own image processor makes of pictures of many sizes.

Run by hand, with torch 2.14.1, torchvision 0.29.1, transformers 5.23.0 and Pillow 13.0.0; torchvision is no dependency of the
tests. The processor resizes bytes by other arithmetic where torch.backends.cpu.get_cpu_capability() is neither AVX2 nor
AVX512; the file says what it was.
"""

import hashlib
import json
import platform
from pathlib import Path

import numpy as np
import torch
from PIL import Image

PICTURES = [
    *((640, 480), (480, 640), (448, 448), (896, 448), (449, 447), (300, 200), (1, 1), (13, 13), (200, 6), (1000, 30)),
    *((30, 1000), (1344, 1500), (2000, 1333), (1333, 2000), (1801, 600), (2688, 2688), (3100, 2900), (5000, 140), (450, 900)),
]


def sizes():
    """Widths and heights: random ones of every magnitude, and those around a multiple of a crop and around too many crops."""
    rng = np.random.default_rng(20261126)
    drawn = [tuple(map(int, np.exp(rng.uniform(0, np.log(9000), 2)))) for _ in range(400)]
    near = [448 * k + d for k in (1, 2, 3, 4, 5, 6, 7, 9, 12, 18, 36) for d in (-1, 0, 1)]
    drawn += [tuple(map(int, rng.choice(near, 2))) for _ in range(150)]
    drawn += [
        (int(448 * i * s) + d, int(448 * j * s))
        for i, j in ((6, 6), (9, 4), (4, 9), (7, 5))
        for s in (1, 1.5)
        for d in (-1, 0, 1)
    ]
    return [(w, h) for w, h in drawn if w * h < 9_000_000]


def plan(processor, width, height):
    """[columns, rows, resized width, resized height, unmasked rows, unmasked columns] or None where it refuses."""
    black = torch.zeros((3, height, width), dtype=torch.uint8)
    try:
        canvas, mask = processor.dynamic_preprocess(black, 448, 14, 32, max_num=36)
    except ValueError:
        return None
    shown = canvas[0] == 0
    return [
        canvas.shape[2] // 448,
        canvas.shape[1] // 448,
        *(int(shown.any(axis).sum()) for axis in (0, 1)),
        *(int(mask.any(axis).sum()) for axis in (1, 0)),
    ]


def synthetic_picture(width, height):
    y, x = np.mgrid[:height, :width]
    return np.stack([(7 * x + 13 * y + 50 * c + (x * y) // 97) % 256 for c in range(3)], axis=-1).astype(np.uint8)


def digest(array):
    return hashlib.sha256(np.ascontiguousarray(array, dtype="<f4").tobytes()).hexdigest()


def pixels(processor, width, height):
    """Digests of the whole and of the canvas up to the mask, and the number of tokens; what is masked is white."""
    out = processor(Image.fromarray(synthetic_picture(width, height)), return_tensors="np")
    crops, masks = out["image_pixel_values"][0], out["image_attention_mask"][0]
    rows, columns = (int(side) // 448 for side in out["image_sizes"][0])
    canvas = crops[1:].reshape(rows, columns, 3, 448, 448).transpose(2, 0, 3, 1, 4).reshape(3, rows * 448, columns * 448)
    mask = masks[1:].reshape(rows, columns, 32, 32).transpose(0, 2, 1, 3).reshape(rows * 32, columns * 32)
    h, w = int(mask[:, 0].sum()), int(mask[0].sum())
    masked = np.ones_like(mask)
    masked[:h, :w] = 0
    assert np.array_equal(mask, 1 - masked)
    assert masks[0].all()
    assert (canvas[:, np.kron(masked, np.ones((14, 14))) == 1] == 1).all()
    return {
        "size": [width, height],
        "patches": [h, w],
        "whole": digest(crops[0]),
        "canvas": digest(canvas[:, : h * 14, : w * 14]),
        "tokens": int(np.ravel(out["num_img_tokens"])[0]),
    }


def main():
    import torchvision  # here, because the tests' collector imports this file and has no torchvision
    import transformers
    from transformers.models.phi4_multimodal.image_processing_phi4_multimodal import Phi4MultimodalImageProcessor

    processor = Phi4MultimodalImageProcessor()
    content = {
        "made with": {
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "transformers": transformers.__version__,
            "machine": platform.machine(),
            "cpu capability": torch.backends.cpu.get_cpu_capability(),
        },
        "preprocessor_config": json.loads(processor.to_json_string()),
        "plans": [[w, h, plan(processor, w, h)] for w, h in sizes()],
        "pictures": [pixels(processor, w, h) for w, h in PICTURES],
    }
    rows = ",\n".join(f'"{key}": [\n' + ",\n".join(map(json.dumps, content[key])) + "\n]" for key in ("plans", "pictures"))
    head = "\n".join(f'"{key}": {json.dumps(content[key])},' for key in ("made with", "preprocessor_config"))
    text = f"{{\n{head}\n{rows}\n}}\n"
    Path(__file__).with_name("phi4_multimodal.json").write_text(text)


if __name__ == "__main__":
    main()
