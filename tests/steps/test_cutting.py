"""Pictures: upstream's own slices and pixels, every mode and format, and the files that are none."""

import hashlib
import io
import json
import math
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from npembed import MINICPM_V_2_6, Config, SlicingConfig, slice_image
from npembed.steps.cutting import plan_slices
from npembed.steps.patches import strip_to_picture
from npembed.support.pictures import read_image
from tests.command_line import done_well, npembed
from tests.synthetic import synthetic_picture

SMALL = Config(slicing=SlicingConfig(scale_resolution=56, patch_size=14, max_slice_nums=4))


def rgb(width: int = 60, height: int = 40) -> Image.Image:
    return Image.fromarray(synthetic_picture(width, height))


def same(first: Any, second: Any) -> bool:
    """Whether two pictures give the same strips."""
    (a, sizes), (b, others) = slice_image(first, SMALL), slice_image(second, SMALL)
    return np.array_equal(sizes, others) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


# Upstream's own answers


def test_upstreams_slices(data: Path) -> None:
    rows = json.loads((data / "slicing.json").read_text())["rows"]
    assert len(rows) == 600
    for row in rows:
        plan = plan_slices(tuple(row["image_size"]), SlicingConfig(max_slice_nums=row["max_slice_nums"]))
        found = {"grid": plan.grid, "source_size": plan.source_size, "refine_size": plan.refine_size}
        found = {name: None if value is None else list(value) for name, value in found.items()}
        assert found | {"tgt_sizes": plan.tgt_sizes.tolist()} == {name: row[name] for name in (*found, "tgt_sizes")}, row


def test_upstreams_pixels(data: Path) -> None:
    images = json.loads((data / "pixel_values.json").read_text())["images"]
    assert len(images) >= 2
    for row in images:
        strips, tgt_sizes = slice_image(synthetic_picture(*row["image_size"]))
        assert tgt_sizes.tolist() == row["tgt_sizes"]
        assert [list(strip.shape) for strip in strips] == row["shapes"]
        assert [strip.ravel()[:8].tolist() for strip in strips] == row["first8"]
        assert [hashlib.sha256(strip.astype("<f4").tobytes()).hexdigest() for strip in strips] == row["sha256"]


# The plan


sides = st.integers(1, 4000)
slicings = st.builds(
    SlicingConfig,
    scale_resolution=st.integers(28, 600),
    max_slice_nums=st.integers(1, 12),
    patch_size=st.integers(1, 28),
)


@given(width=sides, height=sides, slicing=slicings)
def test_a_plan_is_of_whole_patches_and_of_no_more_crops_than_allowed(width: int, height: int, slicing: SlicingConfig) -> None:
    plan = plan_slices((width, height), slicing)
    assert plan.tgt_sizes.dtype == np.int64
    assert plan.tgt_sizes.min() >= 1
    assert all(side % slicing.patch_size == 0 for side in plan.source_size)
    if plan.grid is None:
        assert plan.refine_size is None
        assert len(plan.tgt_sizes) == 1
        return
    columns, rows = plan.grid
    assert 2 <= columns * rows <= slicing.max_slice_nums
    assert len(plan.tgt_sizes) == 1 + columns * rows
    assert plan.refine_size is not None
    assert plan.refine_size[0] % (columns * slicing.patch_size) == plan.refine_size[1] % (rows * slicing.patch_size) == 0
    assert (plan.tgt_sizes[1:] == plan.tgt_sizes[1]).all()
    assert width * height > slicing.scale_resolution**2


@given(width=sides, height=sides)
def test_the_grid_is_the_nearest_in_shape_of_all_that_are_allowed(width: int, height: int) -> None:
    plan = plan_slices((width, height))
    wanted = min(math.ceil(width * height / 448**2), 9)
    assert (plan.grid is None) == (wanted <= 1)
    if plan.grid is not None:
        counts = [count for count in (wanted - 1, wanted, wanted + 1) if count not in (1, 10)]
        grids = [(m, count // m) for count in counts for m in range(1, count + 1) if count % m == 0]
        distances = {grid: abs(math.log(width / height) - math.log(grid[0] / grid[1])) for grid in grids}
        assert plan.grid == min(grids, key=lambda grid: distances[grid])  # the first of equals, as `min` takes it


@given(width=st.integers(100, 2000), height=st.integers(100, 2000))
def test_slices_keep_the_shape_and_have_about_the_resolutions_area(width: int, height: int) -> None:
    plan = plan_slices((width, height))
    aspect = width / height
    if 1 / 3 <= aspect <= 3:
        assert math.isclose(plan.source_size[0] / plan.source_size[1], aspect, rel_tol=0.12)
        if plan.grid is None or width * height > 448**2:
            assert math.isclose(plan.source_size[0] * plan.source_size[1], 448**2, rel_tol=0.12)


def test_a_sides_half_patch_goes_to_the_even_number() -> None:
    # No slicing, and a resolution whose square root comes out even: 448 / sqrt(1) / 128 = 3.5 patches.
    assert plan_slices((10, 10), SlicingConfig(patch_size=128)).tgt_sizes.tolist() == [[4, 4]]
    assert plan_slices((10, 10), SlicingConfig(patch_size=179)).tgt_sizes.tolist() == [[3, 3]]
    assert plan_slices((10, 10), SlicingConfig(scale_resolution=320, patch_size=128)).tgt_sizes.tolist() == [[2, 2]]  # 2.5


def test_the_seeds_picture() -> None:
    strips, tgt_sizes = slice_image(synthetic_picture(640, 480))
    assert tgt_sizes.tolist() == [[28, 37], [39, 26], [39, 26]]
    assert [strip.shape for strip in strips] == [(3, 14, 14504), (3, 14, 14196), (3, 14, 14196)]


def test_at_most_one_slice() -> None:
    single = Config(slicing=SlicingConfig(max_slice_nums=1))
    assert slice_image(synthetic_picture(640, 480), single)[1].shape == (1, 2)


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (-1, 5)])
def test_a_plan_for_no_picture_is_refused(size: tuple[int, int]) -> None:
    name = "width" if size[0] < 1 else "height"
    with pytest.raises(ValueError, match=rf"^plan_slices: {name} must be a whole number of at least 1; got {min(size)}$"):
        plan_slices(size)
    with pytest.raises(TypeError, match=r"^plan_slices: width must be a whole number of at least 1; got 2\.5$"):
        plan_slices((2.5, 3))  # type: ignore[arg-type]


# Pixels


@settings(max_examples=25)
@given(width=st.integers(1, 300), height=st.integers(1, 300))
def test_every_picture_becomes_strips_of_its_plan(width: int, height: int) -> None:
    strips, tgt_sizes = slice_image(synthetic_picture(width, height), SMALL)
    assert tgt_sizes.tolist() == plan_slices((width, height), SMALL.slicing).tgt_sizes.tolist()
    for strip, (h, w) in zip(strips, tgt_sizes, strict=True):
        assert strip.dtype == np.float32
        assert strip.shape == (3, 14, h * w * 14)
        assert -1 <= strip.min() <= strip.max() <= 1


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1), (1, 1), (2, 30_000)])
def test_extreme_shapes_and_sizes_are_sliced(size: tuple[int, int]) -> None:
    strips, tgt_sizes = slice_image(synthetic_picture(*size))
    assert len(strips) == len(tgt_sizes)
    assert tgt_sizes.min() >= 1
    assert all(strip.shape == (3, 14, h * w * 14) for strip, (h, w) in zip(strips, tgt_sizes.tolist(), strict=True))


def test_every_byte_is_normalised_in_float32() -> None:
    # A picture that is not resized: 16 x 16 pixels of every grey, one slice.
    config = Config(slicing=SlicingConfig(scale_resolution=16, patch_size=4, max_slice_nums=1))
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    (strip,), _ = slice_image(np.stack([grey] * 3, axis=-1), config)
    exact = (grey.astype(np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
    rounded_once = ((grey / 255 - 0.5) / 0.5).astype(np.float32)
    assert np.array_equal(strip_to_picture(strip, (4, 4)), np.stack([exact] * 3))
    assert not np.array_equal(exact, rounded_once)


def test_each_channel_has_its_own_mean_and_deviation() -> None:
    slicing = SlicingConfig(scale_resolution=4, patch_size=2, max_slice_nums=1, mean=(0.5, 0.25, 0), std=(0.5, 1, 2))
    (strip,), _ = slice_image(np.full((4, 4, 3), 255, dtype=np.uint8), Config(slicing=slicing))
    assert [channel.max() for channel in strip] == [1.0, 0.75, 0.5]
    assert [channel.min() for channel in strip] == [1.0, 0.75, 0.5]


def test_the_crops_are_the_refined_picture_row_by_row() -> None:
    picture = rgb(300, 200)
    strips, tgt_sizes = slice_image(picture, SMALL)
    plan = plan_slices((300, 200), SMALL.slicing)
    assert plan.grid == (2, 2)
    assert plan.refine_size is not None
    crops = [strip_to_picture(strip, tuple(size)) for strip, size in zip(strips, tgt_sizes.tolist(), strict=True)][1:]
    whole = np.concatenate([np.concatenate(crops[:2], axis=2), np.concatenate(crops[2:], axis=2)], axis=1)
    refined = np.asarray(picture.resize(plan.refine_size, Image.Resampling.BICUBIC)).transpose(2, 0, 1).astype(np.float32)
    assert np.array_equal(whole, (refined / np.float32(255) - np.float32(0.5)) / np.float32(0.5))


# What a picture can be


def test_an_array_and_a_picture_are_the_same() -> None:
    assert same(rgb(), synthetic_picture(60, 40))
    assert same(rgb(), synthetic_picture(60, 40)[::1, ::1])
    flipped = synthetic_picture(60, 40)[:, ::-1]  # not contiguous
    assert same(flipped, flipped.copy())


def palette(transparency: object = None) -> Image.Image:
    picture = rgb().quantize(16)
    if transparency is not None:
        picture.info["transparency"] = transparency
    return picture


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGBA", "CMYK", "YCbCr", "HSV", "PA", "RGBX"])
def test_every_8_bit_mode_is_converted_as_pillow_does(mode: str) -> None:
    picture = rgb().convert(mode)
    assert same(picture, picture.convert("RGB"))


def test_a_mode_that_pillow_cannot_convert_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^slice_image: image cannot be decoded: conversion from La to L not supported$"):
        slice_image(rgb().convert("LA").convert("La"))


@pytest.mark.parametrize("transparency", [None, 0, bytes(range(16))])
def test_a_palette_is_converted_and_its_transparency_dropped_without_a_warning(transparency: object) -> None:
    assert same(palette(transparency), palette().convert("RGB"))


def test_alpha_is_dropped_not_blended() -> None:
    clear = rgb().convert("RGBA")
    clear.putalpha(0)
    assert same(clear, rgb())


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I", "F"])
def test_deep_greyscale_is_refused(mode: str) -> None:
    message = (
        rf"^slice_image: image has mode {mode}, 16- or 32-bit greyscale, which the conversion to RGB would clip to white; "
    )
    with pytest.raises(ValueError, match=message + "scale it to 8 bits first$"):
        slice_image(Image.new(mode, (20, 20)))


ARRAYS = [
    (np.zeros((4, 4), dtype=np.uint8), "uint8 (4, 4)"),
    (np.zeros((4, 4, 4), dtype=np.uint8), "uint8 (4, 4, 4)"),
    (np.zeros((1, 4, 4, 3), dtype=np.uint8), "uint8 (1, 4, 4, 3)"),
    (np.zeros((0, 4, 3), dtype=np.uint8), "uint8 (0, 4, 3)"),
    (np.zeros((4, 4, 3)), "float64 (4, 4, 3)"),
    (np.zeros((4, 4, 3), dtype=np.int64), "int64 (4, 4, 3)"),
    (np.zeros((4, 4, 3), dtype=bool), "bool (4, 4, 3)"),
]


@pytest.mark.parametrize(("array", "got"), ARRAYS, ids=[row[1] for row in ARRAYS])
def test_arrays_that_are_no_pictures_are_refused(array: NDArray[Any], got: str) -> None:
    message = f"slice_image: an image array must be uint8 of shape (H, W, 3); got {got}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        slice_image(array)


@pytest.mark.parametrize("thing", ["photo.jpg", None, [[1]], 3], ids=repr)
def test_what_is_no_picture_is_refused(thing: object) -> None:
    kind = type(thing).__name__
    with pytest.raises(TypeError, match=f"^slice_image: image must be a PIL image or a uint8 array; got {kind}$"):
        slice_image(thing)


def test_an_empty_picture_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^slice_image: image must not be empty; got size \(0, 5\)$"):
        slice_image(Image.new("RGB", (0, 5)))


def test_a_picture_is_not_changed() -> None:
    picture, array = rgb(), synthetic_picture(60, 40)
    array.flags.writeable = False
    slice_image(picture, SMALL)
    strips, tgt_sizes = slice_image(array, SMALL)
    strips[0][:] = 7
    tgt_sizes[:] = 7
    assert np.array_equal(np.asarray(picture), array)
    assert np.array_equal(array, synthetic_picture(60, 40))
    assert same(picture, array)
    assert slice_image(array, SMALL)[1].max() > 1
    assert slice_image(array, SMALL)[0][0].max() <= 1


# Files


def saved(path: Path, picture: Image.Image, **options: Any) -> Path:
    picture.save(path, **options)
    return path


@pytest.mark.parametrize(
    ("suffix", "options", "exact"),
    [
        (".png", {}, True),
        (".bmp", {}, True),
        (".webp", {"lossless": True}, True),
        (".tiff", {}, True),
        (".jpg", {"quality": 95}, False),
        (".webp", {"quality": 90}, False),
    ],
)
@pytest.mark.parametrize("stem", ["photo", "my photo", "Фото 写真 é"])
def test_files_of_each_format_and_name_are_read(
    suffix: str, options: dict[str, Any], exact: bool, stem: str, tmp_path: Path
) -> None:
    picture, turn, _ = read_image(saved(tmp_path / (stem + suffix), rgb(), **options))
    assert not turn
    assert picture.size == (60, 40)
    assert np.array_equal(np.asarray(picture), synthetic_picture(60, 40)) == exact
    assert len(slice_image(picture, SMALL)[0]) >= 1


def test_a_path_can_be_text(tmp_path: Path) -> None:
    assert read_image(str(saved(tmp_path / "a.png", rgb())))[0].size == (60, 40)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_files_keep_their_mode(mode: str, tmp_path: Path) -> None:
    picture = Image.new("I;16", (60, 40)) if mode == "I;16" else rgb().convert(mode)
    path = saved(tmp_path / ("a.tiff" if mode == "CMYK" else "a.png"), picture)
    read, *_ = read_image(path)
    assert read.mode == mode
    if mode != "I;16":
        assert same(read, picture.convert("RGB"))


def test_of_an_animation_the_first_frame_is_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (60, 40), colour) for colour in ("red", "lime", "blue")]
    read, *_ = read_image(saved(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:]))
    assert same(read, frames[0])


def test_a_palette_file_with_transparency_is_read_without_a_warning(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", palette(), transparency=bytes(range(16)))
    read, *_ = read_image(path)
    assert read.mode == "P"
    assert read.info["transparency"] == bytes(range(16))
    assert same(read, palette().convert("RGB"))


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    rgb(200, 150).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF"])
def test_a_file_cut_short_is_refused(kind: str, tmp_path: Path) -> None:
    whole = encoded(kind)
    path = tmp_path / "cut short"
    for length in (len(whole) // 2, len(whole) * 3 // 4):
        path.write_bytes(whole[:length])
        with pytest.raises(
            ValueError, match=f"^{re.escape(str(path))} (cannot be read as an image: |is not an image that Pillow)"
        ):
            read_image(path)


def test_a_corrupt_chunk_is_refused(tmp_path: Path) -> None:
    whole = bytearray(encoded("PNG"))
    whole[whole.index(b"IDAT") + 60] ^= 0xFF
    path = tmp_path / "corrupt.png"
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))} cannot be read as an image: "):
        read_image(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\xff\xd8", "is not an image that Pillow can read"),
        (b"just some words", "is not an image that Pillow can read"),
        (bytes(1000), "is not an image that Pillow can read"),
    ],
    ids=["empty", "two bytes", "text", "zeros"],
)
def test_a_file_that_is_no_picture_is_refused(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "no picture.jpg"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))} {words}$"):
        read_image(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path, words in (
        (tmp_path / "no such.png", "is missing"),
        (tmp_path, "is a folder, not a picture; give the files in it"),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(str(path))} {words}"):
            read_image(path)


def test_a_picture_too_large_to_decode_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "large.png", rgb())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60 * 40 // 2 - 1)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))} is too large to decode safely: Image size"):
        read_image(path)


def test_pillows_warnings_are_pillows_to_give_and_the_command_line_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "large.png", rgb())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60 * 40 - 1)
    with pytest.warns(Image.DecompressionBombWarning):
        assert read_image(path)[0].size == (60, 40)
    monkeypatch.chdir(tmp_path)
    assert "60×40 pixels" in done_well(npembed("embed", path))


def test_a_picture_opened_lazily_from_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "short.png"
    path.write_bytes(encoded("PNG")[:400])
    with Image.open(path) as picture, pytest.raises(ValueError, match=r"^slice_image: image cannot be decoded: "):
        slice_image(picture)


def test_a_png_whose_header_promises_gigapixels_is_refused(tmp_path: Path) -> None:
    header = b"IHDR" + struct.pack(">IIBBBBB", 2**20, 2**20, 8, 2, 0, 0, 0)
    path = tmp_path / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", 0))
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))} "):
        read_image(path)


def test_the_defaults_are_minicpm_v_2_6s() -> None:
    assert np.array_equal(slice_image(rgb())[1], slice_image(rgb(), MINICPM_V_2_6)[1])
