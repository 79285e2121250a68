"""GGUF files made by hand, byte by byte, so that each can lie in one place."""

import struct

from gguf import GGUFReader

U32, I32, F32, BOOL, TEXT, ARRAY, U64 = 4, 5, 6, 7, 8, 9, 10
FORMS = {U32: "<I", I32: "<i", F32: "<f", BOOL: "<?", U64: "<Q"}


def text(value):
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def value(kind, content):
    if kind == TEXT:
        return text(content)
    if kind == ARRAY:
        inner, items = content
        return struct.pack("<IQ", inner, len(items)) + b"".join(value(inner, item) for item in items)
    return struct.pack(FORMS[kind], content)


def pair(key, kind, content):
    return text(key) + struct.pack("<I", kind) + value(kind, content)


def record(name, shape, kind=0, offset=0):
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), kind, offset)


def container(pairs, records, data=b"", *, version=3, arrays=None, count=None, alignment=32):
    """The file whose pairs and records are these bytes."""
    arrays, count = (len(given) if stated is None else stated for given, stated in ((records, arrays), (pairs, count)))
    head = b"GGUF" + struct.pack("<IQQ", version, arrays, count)
    head += b"".join(pairs) + b"".join(records)
    return head + bytes(-len(head) % alignment) + data


CLIP = pair("general.architecture", TEXT, "clip")


class Written:
    """A file of the package's own reader, taken apart so that it can be written again with a change."""

    def __init__(self, path):
        reader = GGUFReader(path)
        self.pairs = {}
        for key, field in reader.fields.items():
            if not key.startswith("GGUF."):
                kinds, content = [int(kind) for kind in field.types], field.contents()
                self.pairs[key] = (ARRAY, (kinds[1], content)) if kinds[0] == ARRAY else (kinds[0], content)
        self.arrays = {
            each.name: (tuple(each.shape.tolist()[::-1]), each.tensor_type, each.data.tobytes()) for each in reader.tensors
        }

    def write(self, path):
        records, data = [], b""
        for name, (shape, kind, raw) in self.arrays.items():
            records.append(record(name, shape, int(kind), len(data)))
            data += raw + bytes(-len(raw) % 32)
        path.write_bytes(container([pair(key, *content) for key, content in self.pairs.items()], records, data))
        return path
