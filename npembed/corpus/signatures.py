"""Whether a file is a picture, by its first bytes, or claims to be one, by its name."""

import os
from functools import lru_cache

FIRST_BYTES = 32
"""How many are looked at."""

_BEGINNINGS = (
    b"\xff\xd8\xff",  # JPEG
    b"\x89PNG\r\n\x1a\n",
    b"GIF87a",
    b"GIF89a",
    b"BM",
    b"II*\x00",  # TIFF, both orders of bytes
    b"MM\x00*",
    b"II+\x00",  # BigTIFF
    b"MM\x00+",
    b"\x00\x00\x00\x0cjP  \r\n\x87\n",  # JPEG 2000
    b"\xff\x4f\xff\x51",
    b"\xff\x0a",  # JPEG XL
    b"\x00\x00\x00\x0cJXL \r\n\x87\n",
    b"\x00\x00\x01\x00",  # ICO
    b"8BPS",
    b"qoif",
    b"DDS ",
    b"icns",
    b"\x01\xda",  # SGI
)
_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")
"""Of the boxed formats AVIF and HEIF, after `ftyp`."""


def is_picture(first: bytes) -> bool:
    """Whether a file that begins so is a picture of a usual kind, readable or not.

    Examples
    --------
    >>> is_picture(b"\\xff\\xd8\\xff\\xe0"), is_picture(b"P6\\n2 2\\n255\\n"), is_picture(b"Dear all,"), is_picture(b"")
    (True, True, False, False)
    """
    if first.startswith(_BEGINNINGS):
        return True
    if first[:4] == b"RIFF":
        return first[8:12] == b"WEBP"
    if first[4:8] == b"ftyp":
        return first[8:12] in _BRANDS
    return (
        first[:1] == b"P" and first[1:2] in tuple(b"%d" % n for n in range(1, 8)) and first[2:3] in (b" ", b"\t", b"\n", b"\r")
    )


_OTHERS = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PDF"})
"""Formats whose suffixes Pillow knows and that a person would not call pictures: pages, films, measurements."""
_APPLE_DOUBLE = b"\0\5\x16\7"
"""How the files `._NAME` begin that macOS puts beside others, in every archive that it makes."""


def claims_to_be_picture(name: str, first: bytes) -> bool:
    """Whether a file's name ends as a picture's does, and it is not one of macOS's companions of a picture.

    Parameters
    ----------
    name : str
        A path, or a URL.
    first : bytes
        How the file begins.

    Raises
    ------
    ImportError
        Without the extra `image`: Pillow knows the suffixes.

    Examples
    --------
    >>> [claims_to_be_picture(name, b"") for name in ("a.JPG", "https://host/a.png?size=1", "notes.txt", "film.mpg", "jpg")]
    [True, True, False, False, False]
    """
    path = name.partition("?")[0] if "://" in name else name
    return os.path.splitext(path)[1].lower() in _suffixes() and not first.startswith(_APPLE_DOUBLE)


@lru_cache(maxsize=1)
def _suffixes() -> frozenset[str]:
    """Pillow's, and those of HEIC, which it reads with another package."""
    from npembed.support.pictures import pillow

    known = pillow().registered_extensions()
    return frozenset({".heic", ".heif", ".hif", *(suffix for suffix, kind in known.items() if kind not in _OTHERS)})
