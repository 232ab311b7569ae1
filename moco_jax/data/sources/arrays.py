"""Pixels as they are, in NumPy's file format: height, width, channels, and a byte for each value.

Such an image needs no decoder; reading it copies nothing. Arrays of other shapes and number types
are decoded by `pixels.py`.
"""

import io
import re

import numpy as np

NUMPY = b"\x93NUMPY"
MOST = 2**31 - 2**20  # values that a record can hold beside its name, see `index.LONGEST`
# What NumPy writes before C-ordered uint8 [H, W, C].
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '\|u1', 'fortran_order': False, "
    rb"'shape': \((\d{1,9}), (\d{1,9}), (\d{1,9})\), \} *\n",
    re.DOTALL,
)


def encode(image: np.ndarray) -> bytes:
    """Write uint8 `[H, W, C]` as a file of NumPy's."""
    file = io.BytesIO()
    np.lib.format.write_array(file, np.ascontiguousarray(image), version=(1, 0))
    return file.getvalue()


def pixels_in(content: bytes) -> np.ndarray | None:
    """Return the pixels uint8 `[H, W, C]` that `content` holds as they are, read-only.

    None where it is anything else, or cut off, or has no pixels.
    """
    if not content.startswith(NUMPY):
        return None
    head = _HEADER.match(content)
    if head is None or int.from_bytes(content[8:10], "little") != head.end() - 10:
        return None
    height, width, channels = map(int, head.groups())
    if not height * width * channels or len(content) != head.end() + height * width * channels:
        return None
    return np.frombuffer(content, np.uint8, offset=head.end()).reshape(height, width, channels)
