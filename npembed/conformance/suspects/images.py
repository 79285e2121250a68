"""Faults of cutting a picture, for a config of any family."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

import npembed
from npembed.conformance.filling import changed_config
from npembed.conformance.suspects.suspect import Fault, Function, Suspect, config_with
from npembed.steps.patches import patches_to_strip, strip_to_patches
from npembed.steps.pixels import PixelRule
from npembed.support.typing import Array, Pixels, Size


def cutting(name: str, change: Callable[[Any], Any]) -> Fault:
    """The fault of another method of the family that cuts; `change` makes it of the one there."""

    def fault(function: Function) -> Function:
        def faulty(image: Any, config: Any = npembed.MINICPM_V_2_6, *args: Any, **kwargs: Any) -> Any:
            return function(image, config_with(config, name, change), *args, **kwargs)

        return faulty

    return fault


def by_rule(change: Callable[[PixelRule], PixelRule]) -> Fault:
    """The fault of another pixel rule, made of the one that is asked for."""
    return cutting("pixel_rule", lambda asked: lambda name, who: change(asked(name, who)))


def resizing(change: Fault) -> Fault:
    """The fault of another resize."""
    return by_rule(lambda rule: replace(rule, resize=change(rule.resize)))


def _bgr(function: Function) -> Function:
    """The picture's channels are reversed before anything else."""
    return lambda image, *args, **kwargs: function(np.ascontiguousarray(np.asarray(image)[..., ::-1]), *args, **kwargs)


def _crops_bgr(function: Function) -> Function:
    """Those of the crops alone."""

    def faulty(image: Any, *args: Any, **kwargs: Any) -> Any:
        right, wrong = function(image, *args, **kwargs), _bgr(function)(image, *args, **kwargs)
        return [right[0][0], *wrong[0][1:]], right[1]

    return faulty


def _column_major(function: Function) -> Function:
    def faulty(*args: Any, **kwargs: Any) -> Any:
        strips, tgt_sizes = function(*args, **kwargs)
        turned = []
        for strip, (h, w) in zip(strips, tgt_sizes.tolist(), strict=True):
            order = np.arange(h * w).reshape(h, w).T.ravel()
            turned.append(patches_to_strip(strip_to_patches(strip)[order], strip.shape[1]))
        return turned, tgt_sizes

    return faulty


def _of_result(change: Callable[[list[Array], Array], tuple[list[Array], Array]]) -> Fault:
    return lambda function: lambda *args, **kwargs: change(*function(*args, **kwargs))


def _last_first(strips: list[Array], sizes: Array) -> tuple[list[Array], Array]:
    """The last slice comes first."""
    return [strips[-1], *strips[:-1]], np.concatenate([sizes[-1:], sizes[:-1]])


def _first_last(strips: list[Array], sizes: Array) -> tuple[list[Array], Array]:
    return [*strips[1:], strips[0]], np.concatenate([sizes[1:], sizes[:1]])


def _transposed_patches(strips: list[Array], sizes: Array) -> tuple[list[Array], Array]:
    """Rows and columns are exchanged within each patch."""
    turned = []
    for strip in strips:
        channels, side, _ = strip.shape
        patches = strip_to_patches(strip).reshape(-1, channels, side, side).swapaxes(2, 3)
        turned.append(patches_to_strip(patches.reshape(len(patches), -1), side))
    return turned, sizes


def _cells_by_column(cells: Function) -> Function:
    def other(pixels: Pixels, columns: int, rows: int) -> list[Pixels]:
        found = cells(pixels, columns, rows)
        return [found[row * columns + column] for column in range(columns) for row in range(rows)]

    return other


def _half_up(fit: Function) -> Function:
    return lambda length, unit: max(math.floor(length / unit + 0.5) * unit, unit)


def _grid_turned(best_grid: Function) -> Function:
    def other(size: Size, slicing: Any) -> Any:
        grid = best_grid(size, slicing)
        return grid and grid[::-1]

    return other


def _last_of_ties(best_grid: Function) -> Function:
    """Of grids that are as near to the picture's shape the last is taken, not the first."""

    def other(size: Size, slicing: Any) -> Any:
        if best_grid(size, slicing) is None:
            return None
        least, found = math.inf, None
        multiple = min(math.ceil(size[0] * size[1] / slicing.scale_resolution**2), slicing.max_slice_nums)
        for count in range(max(multiple - 1, 2), min(multiple + 1, slicing.max_slice_nums) + 1):
            for columns in (columns for columns in range(1, count + 1) if count % columns == 0):
                gap = abs(math.log(size[0] / size[1]) - math.log(columns / (count // columns)))
                if gap <= least:
                    least, found = gap, (columns, count // columns)
        return found

    return other


def _filter(name: str) -> Fault:
    return resizing(lambda resize: lambda picture, size, resample: resize(picture, size, name))


def _by_taps(antialias: bool, slope: float) -> Fault:
    """A bicubic resize in float64, rounded once at its end."""

    def change(resize: Function) -> Function:
        def other(picture: Any, size: Size, resample: str) -> Pixels:
            pixels = np.asarray(picture, dtype=np.float64)
            for axis, length in ((1, size[0]), (0, size[1])):
                pixels = np.moveaxis(
                    np.tensordot(_taps(pixels.shape[axis], length, antialias, slope), pixels, (1, axis)), 0, axis
                )
            return np.clip(np.floor(pixels + 0.5), 0, 255).astype(np.uint8)

        return other

    return resizing(change)


def _taps(old: int, new: int, antialias: bool, slope: float) -> Array:
    """(new, old): the weights of a cubic convolution with that slope."""
    step = old / new
    reach = max(step, 1.0) if antialias else 1.0
    centres = (np.arange(new)[:, None] + 0.5) * step - 0.5
    if not antialias:  # four taps, the edge's repeated
        weights = np.zeros((new, old))
        first = np.floor(centres[:, 0]).astype(int)
        for tap in range(-1, 3):
            np.add.at(
                weights, (np.arange(new), np.clip(first + tap, 0, old - 1)), _cubic(np.abs(first + tap - centres[:, 0]), slope)
            )
        return weights
    weights = _cubic(np.abs(np.arange(old) - centres) / reach, slope)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _cubic(x: Array, slope: float) -> Array:
    near = ((slope + 2) * x - (slope + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * slope - 4 * slope
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _normalised(formula: Callable[[Array, Array, Array], Array]) -> Fault:
    """Other arithmetic of the pixels: formula(bytes (256,), mean (3, 1), std (3, 1)) -> (3, 256)."""

    def levels(mean: tuple[float, ...], std: tuple[float, ...]) -> Array:
        means, deviations = (np.array(values)[:, None] for values in (mean, std))
        return np.broadcast_to(formula(np.arange(256.0), means, deviations), (3, 256)).astype(np.float32)

    return by_rule(lambda rule: replace(rule, levels=levels))


def _single(x: Array) -> Array:
    return x.astype(np.float32)


def _fused(x: Array, mean: Array, std: Array) -> Array:
    """(f32(u8) - f32(mean * 255)) / f32(std * 255)."""
    return np.asarray((_single(x) - _single(mean * 255)) / _single(std * 255))


def _multiplied(x: Array, mean: Array, std: Array) -> Array:
    """f32(u8) * f32(1/255), then as it should be."""
    return np.asarray((_single(x) * np.float32(1 / 255) - _single(mean)) / _single(std))


def _plain(x: Array) -> Array:
    return _single(x) / np.float32(255)


def _shaped(x: Array, mean: Array, std: Array) -> Array:
    return np.asarray((_plain(x) - _single(mean)) / _single(std))


def _with_fields(**values: Any) -> Fault:
    """Fields of the config, or of the configs within, are not looked at: they have these values."""

    def fault(function: Function) -> Function:
        def faulty(image: Any, config: Any = npembed.MINICPM_V_2_6, *args: Any, **kwargs: Any) -> Any:
            return function(image, changed_config(config, values), *args, **kwargs)

        return faulty

    return fault


def _from_the_original(resize: Function) -> Function:
    """A resize of a resized picture starts from the original instead."""
    first: dict[str, Any] = {}

    def other(picture: Any, size: Size, resample: str) -> Pixels:
        source = first.setdefault("picture", picture)
        return np.asarray(resize(source, size, resample))

    return other


HALF = (0.5, 0.5, 0.5)

SLICE_IMAGE = (
    Suspect("the channels are reversed: BGR, not RGB", _bgr),
    Suspect("the channels are reversed in the crops alone", _crops_bgr),
    Suspect("the patches are laid column by column, not row by row", _column_major),
    Suspect("rows and columns are exchanged within each patch", _of_result(_transposed_patches)),
    Suspect("tgt_sizes have h and w swapped", _of_result(lambda strips, sizes: (strips, sizes[:, ::-1]))),
    Suspect("the whole picture comes last, not first", _of_result(_first_last)),
    Suspect("the whole picture comes first, not last", _of_result(_last_first), shipped="ports of Idefics3"),
    Suspect("the crops go column by column, not row by row", cutting("cells", _cells_by_column)),
    Suspect("the grid has columns and rows exchanged", cutting("best_grid", _grid_turned)),
    Suspect("of two grids that are as near the last is taken", cutting("best_grid", _last_of_ties)),
    Suspect("lengths are rounded half up, not half to even", cutting("fit", _half_up)),
    Suspect(
        "every resize is from the original, not from the resized picture",
        resizing(_from_the_original),
        shipped="ports of Idefics3",
    ),
    Suspect("bilinear resizing, not the filter of the config", _filter("BILINEAR")),
    Suspect("bicubic resizing, not the filter of the config", _filter("BICUBIC")),
    Suspect("Lanczos resizing, not the filter of the config", _filter("LANCZOS")),
    Suspect("nearest resizing, not the filter of the config", _filter("NEAREST")),
    Suspect("antialiased bicubic resizing in floats, rounded once", _by_taps(True, -0.5), shipped="torchvision"),
    Suspect(
        "bicubic resizing without antialiasing, slope -0.75", _by_taps(False, -0.75), shipped="OpenCV and torch's interpolate"
    ),
    Suspect("bicubic resizing without antialiasing, slope -0.5", _by_taps(False, -0.5)),
    Suspect("pixels are normalised in float64", _normalised(lambda x, mean, std: (x / 255 - mean) / std)),
    Suspect("scale and shift of the pixels are fused", _normalised(_fused), shipped="transformers' torchvision processors"),
    Suspect("pixels are multiplied by 1/255, not divided by 255", _normalised(_multiplied)),
    Suspect(
        "mean and std are ignored: 0.5 for each", _normalised(lambda x, mean, std: _shaped(x, mean * 0 + 0.5, std * 0 + 0.5))
    ),
    Suspect("mean and std are ignored: pixels from 0 to 1", _normalised(lambda x, mean, std: _plain(x))),
    Suspect("the mean is ignored: 0.5", _normalised(lambda x, mean, std: _shaped(x, mean * 0 + 0.5, std))),
    Suspect("the std is ignored: 0.5", _normalised(lambda x, mean, std: _shaped(x, mean, std * 0 + 0.5))),
    Suspect("mean and std are exchanged", _normalised(lambda x, mean, std: _shaped(x, std, mean))),
    Suspect("the mean is taken for the std, too", _normalised(lambda x, mean, std: _shaped(x, mean, mean))),
    Suspect("the std is taken for the mean, too", _normalised(lambda x, mean, std: _shaped(x, std, std))),
    Suspect("the first channel's mean and std serve for all", _normalised(lambda x, mean, std: _shaped(x, mean[:1], std[:1]))),
    Suspect("max_slice_nums of the config is ignored: it is 9", _with_fields(max_slice_nums=9)),
    Suspect("scale_resolution of the config is ignored: it is 448", _with_fields(scale_resolution=448)),
    Suspect("slice_mode of the config is ignored", _with_fields(slice_mode=True)),
    Suspect("do_image_splitting of the config is ignored: it is false", _with_fields(do_image_splitting=False)),
    Suspect("do_image_splitting of the config is ignored: it is true", _with_fields(do_image_splitting=True)),
)

SUSPECTS = {"slice_image": SLICE_IMAGE}
