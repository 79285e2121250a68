"""A picture's file -> a picture: what may be read, Pillow's errors as ours, EXIF orientations."""

import os
import re
import shutil
import struct
import sys
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from npembed.support.messages import shown
from npembed.support.reading import open_regular, stand_in

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

EXIF_ORIENTATION = 0x0112

_TURNS = (None, "FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90")
"""What makes a picture of each EXIF orientation, from 1 on, upright: one of Pillow's `Transpose`."""

MOST_FILE = 2**30
"""Bytes of a picture's file, at most."""


def pillow() -> Any:
    """`PIL.Image`, or an error that names the extra."""
    try:
        from PIL import Image
    except ImportError:
        raise ImportError("pictures need Pillow: pip install 'npembed[image]'") from None
    return Image


class Turn(StrEnum):
    """What became of the turn that a picture's EXIF asks for."""

    NONE = ""
    """It asks for none."""
    IGNORED = "not applied"
    APPLIED = "applied"
    BY_PILLOW = "applied by Pillow"
    """Pillow turns TIFFs itself as it reads them, and upstream gets them so."""
    MIXED_UP = "mixed up by Pillow"
    """Pillow takes the rows of some TIFFs straight from a named file, in the width that they have once turned."""
    UNREADABLE = "cannot be read"
    """Noted only where pictures are to be turned."""

    @property
    def words(self) -> str:
        """What a person should know, as a clause; "" for no turn."""
        return _WORDS[self]


_WORDS = {
    Turn.NONE: "",
    Turn.IGNORED: "its EXIF orientation was ignored, as upstream does; --upright applies it",
    Turn.APPLIED: "its EXIF orientation was applied",
    Turn.BY_PILLOW: "Pillow itself has turned it by its EXIF orientation, as upstream gets it",
    Turn.MIXED_UP: "Pillow mixes up the rows of this TIFF, which has an EXIF orientation and no compression, and upstream gets "
    "it so; --upright reads it right",
    Turn.UNREADABLE: "its EXIF orientation cannot be read, so it was not turned",
}


class ReadImage(NamedTuple):
    """What a picture's file holds.

    Attributes
    ----------
    picture : PIL image
        Of several frames or pages, the first.
    turn : Turn
        What became of its EXIF orientation; false where it has none.
    pages : int
        How many frames or pages there are.
    """

    picture: "Picture"
    turn: Turn
    pages: int


def read_image(path: str | Path, *, upright: bool = False, most_pixels: int | None = None) -> ReadImage:
    """The picture in a file (of an animation, the first frame), as `PIL.Image.open` of its path has it.

    Parameters
    ----------
    path : path
    upright : bool
        Whether to turn it as its EXIF orientation says, if Pillow has not. Upstream does not.
    most_pixels : int, optional
        Refuse a picture of more before it is decoded. By default Pillow's own limit, 178,956,970, which this can raise too.

    Returns
    -------
    ReadImage

    Raises
    ------
    ValueError
        A file that is missing, no regular file, empty, no picture, cut short, or of too many pixels.
    MemoryError
        A picture for which there is no memory, with its size.
    ImportError
        Without the extra `image`.
    """
    pillow()
    with open_picture(path) as file, _reading(str(path), file), _opened(file, most_pixels) as picture:
        return ReadImage(*_frame(picture, file, str(path), most_pixels, upright), _pages(file, most_pixels))


def read_frames(
    file: "str | Path | BinaryIO", name: str, *, upright: bool = False, every: bool = False, most_pixels: int | None = None
) -> Generator[tuple["Picture", Turn]]:
    """The pictures in one file, one after the other, as `read_image` has them, each with what became of its EXIF orientation.

    Parameters
    ----------
    file : path or binary file
    name : str
        For messages.
    upright : bool
        Whether to turn them as their EXIF orientation says, if Pillow has not.
    every : bool
        Every frame or page; by default the first alone.
    most_pixels : int, optional
        A picture of more is refused before it is decoded.

    Yields
    ------
    picture : PIL image
        To be used before the next one is asked for.
    turn : Turn

    Raises
    ------
    ValueError
        As `read_image`; a picture of more pixels.
    """
    if isinstance(file, (str, Path)):
        with open_picture(file) as opened:
            yield from read_frames(opened, name, upright=upright, every=every, most_pixels=most_pixels)
        return
    with _reading(name, file), _opened(file, most_pixels) as picture:
        if every and picture.format == "HEIF":
            picture.seek(0)  # it begins with the one that is meant to be shown, wherever that lies
        for frame in range(getattr(picture, "n_frames", 1) if every else 1):
            yield _frame(picture, file, name, most_pixels, upright, frame)


def size_of(path: str | Path) -> tuple[int, int] | None:
    """Width and height in pixels as a file's header says, without decoding it; None if it cannot be read."""
    try:
        with open_picture(path) as file, _reading(str(path), file), _opened(file) as picture:
            return picture.size
    except ValueError:
        return None


def open_picture(path: str | Path) -> BinaryIO:
    """A picture's file, opened; an error that says what to do where a folder or a URL is given."""
    if re.match(r"[a-z][a-z0-9+]+:/", str(path), re.IGNORECASE) and not os.path.exists(path):
        raise ValueError(f"{path} is a URL; download the picture and give its file")
    if os.path.isdir(path):
        raise ValueError(f"{path} is a folder, not a picture; give the files in it, {os.path.join(path, '*')}")
    return open_regular(path, MOST_FILE)


def _pages(file: BinaryIO, most_pixels: int | None) -> int:
    """How many frames or pages a file has; 1 where that cannot be told. It is opened anew: counting moves through a file."""
    with suppress(Exception):
        file.seek(0)
        with _opened(file, most_pixels) as picture, _pillow_allows(most_pixels):
            return int(getattr(picture, "n_frames", 1))
    return 1


class TooManyPixelsError(ValueError):
    """A picture of more pixels than were allowed."""


class MissingReaderError(ValueError):
    """A picture that could be read if an extra was installed."""


def _frame(
    picture: "Picture", file: BinaryIO, name: str, most_pixels: int | None, upright: bool, number: int = 0
) -> tuple["Picture", Turn]:
    """One frame, decoded, unless it has too many pixels, and turned if that is asked for."""
    with _pillow_allows(most_pixels):
        if number:
            picture.seek(number)
    _refuse_large(picture, name, most_pixels)
    asked = _orientation(picture) if picture.format == "TIFF" else 1  # afterwards Pillow has turned it, and forgotten that
    try:
        if _is_mapped(picture) and not upright:
            named = _by_name(file, number, most_pixels)
            return named, Turn.BY_PILLOW if named.size == picture.size else Turn.MIXED_UP
        with _pillow_allows(most_pixels):
            picture.load()
    except MemoryError:
        raise MemoryError(f"{name}: no memory for {picture.width} × {picture.height} pixels") from None
    left = _orientation(picture)
    if left > 1:
        return (_turned(picture, left), Turn.APPLIED) if upright else (picture, Turn.IGNORED)
    if asked > 1:
        return picture, Turn.BY_PILLOW
    return picture, Turn.UNREADABLE if upright and not left else Turn.NONE


def _orientation(picture: "Picture") -> int:
    """The EXIF orientation, 1 for none or for one that means nothing; 0 where it cannot be read."""
    try:
        exif = picture.getexif()
        found = exif.get(EXIF_ORIENTATION)
        if found is None and not _is_whole(picture.info, len(exif)):
            return 0
    except Exception:  # it may hold anything, and Pillow stumbles over it
        return 0
    return found if found is not None and found in range(2, 9) else 1


def _is_whole(info: Mapping[Any, Any], tags: int) -> bool:
    """Whether an EXIF, if there is one, has its first list of tags to the end: Pillow gives those before a cut, or none."""
    if "exif" not in info:
        return tags > 0 or "Raw profile type exif" not in info
    data = re.sub(rb"^(Exif\0\0){1,2}", b"", info["exif"])
    order = {b"II": "<", b"MM": ">"}[data[:2]]
    start: int = struct.unpack_from(f"{order}I", data, 4)[0]
    count: int = struct.unpack_from(f"{order}H", data, start)[0]
    return start + 2 + 12 * count <= len(data)


def _is_mapped(picture: "Picture") -> bool:
    """Whether Pillow may take the rows straight from the file if it had its name, in the width of the turned picture."""
    tile: Any = getattr(picture, "tile", ()) if picture.format == "TIFF" else ()
    return bool(len(tile) == 1 and tile[0][0] == "raw" and tile[0][1] is not None and tile[0][1][2:] != picture.size)


def _by_name(file: BinaryIO, number: int, most_pixels: int | None) -> "Picture":
    """One frame as Pillow reads it from a file with a name: a copy, so that what lies in an archive is read so, too."""
    with TemporaryDirectory(prefix="npembed-", ignore_cleanup_errors=True) as folder:
        path = Path(folder, "picture.tiff")
        file.seek(0)
        with path.open("wb") as copy:
            shutil.copyfileobj(file, copy)
        with _pillow_allows(most_pixels), pillow().open(path) as named:
            named.seek(number)
            named.load()
            return named  # type: ignore[no-any-return]


def _refuse_large(picture: "Picture", name: str, most_pixels: int | None) -> None:
    """An error for more pixels than this call allows: while another thread reads a larger picture, Pillow allows more."""
    pixels = picture.width * picture.height
    if most_pixels is not None and pixels > most_pixels:
        raise TooManyPixelsError(f"{name} is too large: {picture.width} × {picture.height} pixels, {most_pixels} at most")
    with _LIMIT:
        most = pillow().MAX_IMAGE_PIXELS
    if most_pixels is None and most is not None and pixels > 2 * most:
        raise TooManyPixelsError(
            f"{name} is too large to decode safely: {picture.width} × {picture.height} pixels, {2 * most} at most; "
            "--max-pixels allows more"
        )


def _opened(file: BinaryIO, most_pixels: int | None = None) -> "Picture":
    Image = pillow()
    with _pillow_allows(most_pixels):
        try:
            return Image.open(file)  # type: ignore[no-any-return]
        except Image.UnidentifiedImageError:
            reader = heif_reader() if _is_heif(file) else None
            if reader is None:
                raise
    return reader(file)  # type: ignore[no-any-return]


def heif_reader() -> Any:
    """pillow-heif's class of pictures, or None without the extra `heif`.

    It is called and not registered, which would change Pillow for the whole process.
    """
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        return None
    return HeifImageFile


def _is_heif(file: BinaryIO) -> bool:
    file.seek(0)
    return re.match(rb"....ftyp(hei|hev|mif1|msf1)", file.read(12), re.DOTALL) is not None


_LIMIT = Lock()
"""Held while the limit of Pillow, one for the whole process, is looked at, and while it is raised for one picture."""


@contextmanager
def _pillow_allows(most_pixels: int | None) -> Iterator[None]:
    """Pillow's own limit out of the way, where the caller allows more."""
    Image = pillow()
    with _LIMIT:
        before = Image.MAX_IMAGE_PIXELS
        if most_pixels is not None and before is not None and most_pixels > 2 * before:  # it refuses twice what it warns of
            Image.MAX_IMAGE_PIXELS = most_pixels
            try:
                yield
                return
            finally:
                Image.MAX_IMAGE_PIXELS = before
    yield


def _turned(picture: "Picture", orientation: int) -> "Picture":
    """The picture upright, without the tags that ask for it: whoever reads them again must not turn it once more."""
    turned = picture.transpose(pillow().Transpose[_TURNS[orientation - 1]])
    for name in ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"):
        turned.info.pop(name, None)
    return turned


@contextmanager
def _reading(name: str, file: BinaryIO) -> Iterator[None]:
    """Whatever Pillow raises, as a ValueError that names the file."""
    Image = pillow()
    try:
        yield
    except (TooManyPixelsError, MemoryError):
        raise
    except Image.UnidentifiedImageError:
        if _is_heif(file):
            raise MissingReaderError(
                f"{name} is a HEIC picture, which needs pillow-heif: pip install 'npembed[heif]'"
            ) from None
        raise ValueError(f"{name} {_no_picture(file)}") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} is too large to decode safely: {error} --max-pixels allows more") from None
    except Exception as error:  # a damaged file raises whatever its reader stumbles on
        raise ValueError(f"{name} cannot be read as an image: {shown(error)}") from None


def _no_picture(file: BinaryIO) -> str:
    """What a file is that Pillow does not know, and what to do."""
    with suppress(OSError, ValueError):
        file.seek(0)
        head = file.read(200)
        if not head:
            return "is empty"
        if stand_in(head):
            return f"is not an image: it {stand_in(head)}"
        for pattern, words in _NO_PICTURES:
            if re.match(pattern, head, re.DOTALL):
                return f"is not an image that Pillow can read: {words}"
    return "is not an image that Pillow can read"


_NO_PICTURES = (
    (rb"....ftypavi[fs]", "it is an AVIF picture, which Pillow reads from version 11.3 on"),
    (rb"....ftyp", "it is a video; save its frames as pictures"),
    (rb"%PDF", "it is a PDF; save its pages as pictures"),
    (rb"\s*<(\?xml|svg)", "it is an SVG or XML file; draw it as a PNG"),
    (rb"GGUF", "it is a GGUF file, which holds a model's weights"),
    (rb"PK\x03\x04", "it is a zip archive"),
)
"""How files begin that are given for pictures, and the words that say so."""


@contextmanager
def silent_libraries() -> Iterator[None]:
    """Nothing that is written straight to the error stream's number appears: libtiff and others print their own complaints.

    For the command line, which has one thread: the number is one for the whole process.
    """
    if sys.stderr is not None:
        sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # the screen is closed
        yield
        return
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
