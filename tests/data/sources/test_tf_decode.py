"""Images of every kind have PIL's pixels and orientation, and damage is flagged.

Sixteen bits are scaled.
"""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from moco_jax.data.sources import pil_decode, pixels
from moco_jax.data.sources.folder import FolderSource
from moco_jax.data.sources.pixels import Decoding
from tests.data.pictures import PHOTO, decoded, encoded, opened, write

TIFF = b"II*\0"


def animated(kind):
    frames = [Image.fromarray(PHOTO), Image.fromarray(PHOTO[::-1].copy())]
    buffer = io.BytesIO()
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:], lossless=True)
    return buffer.getvalue()


def ycck():
    """A CMYK JPEG whose Adobe marker says that its channels are YCCK."""
    content = bytearray(encoded("JPEG", "CMYK"))
    content[content.index(b"Adobe") + 11] = 2
    return bytes(content)


KINDS = {
    "best.jpg": encoded(quality=90, subsampling=0),
    "subsampled.JPEG": encoded(quality=80, subsampling=2),
    "progressive.jfif": encoded(progressive=True),
    "gray.jpg": encoded("JPEG", "L"),
    "cmyk.jpg": encoded("JPEG", "CMYK"),
    "ycck.jpg": ycck(),
    "rgb.PNG": encoded("PNG"),
    "gray.png": encoded("PNG", "L"),
    "gray_alpha.png": encoded("PNG", "LA"),
    "alpha.png": encoded("PNG", "RGBA"),
    "palette.png": encoded("PNG", "P"),
    "bits.png": encoded("PNG", "1"),
    "without_its_last_chunk.png": encoded("PNG")[:-12],
    "rgb.bmp": encoded("BMP"),
    "gray.bmp": encoded("BMP", "L"),
    "palette.bmp": encoded("BMP", "P"),
    "alpha.bmp": encoded("BMP", "RGBA"),
    "bits.bmp": encoded("BMP", "1"),
    "palette.gif": encoded("GIF", "P"),
    "animated.gif": animated("GIF"),
    "lossy.webp": encoded("WEBP"),
    "lossless.WebP": encoded("WEBP", lossless=True),
    "alpha.webp": encoded("WEBP", "RGBA"),
    "animated.webp": animated("WEBP"),
    "rgb.tif": encoded("TIFF"),
    "gray.tiff": encoded("TIFF", "L"),
    "lzw.tif": encoded("TIFF", compression="tiff_lzw"),
    "cmyk.tif": encoded("TIFF", "CMYK"),
    "a_tiff_called.jpg": encoded("TIFF"),
}
DAMAGED = {
    "cut.jpg": encoded()[: len(encoded()) * 2 // 3],
    "empty.jpg": b"",
    "text.jpg": b"these are words",
    "one_byte.jpg": b"\xff",
    "start.jpg": encoded()[:3],
    "cut.png": encoded("PNG")[:-2000],
    "start.png": encoded("PNG")[:20],
    "cut.bmp": encoded("BMP")[:-100],
    "start.bmp": b"BM",
    "cut.gif": encoded("GIF", "P")[:3000],
    "cut.webp": encoded("WEBP")[:-100],
    "cut.tif": encoded("TIFF")[:-5000],
    "start.tif": TIFF,
    "float.tif": encoded("TIFF", pixels=np.ones((4, 5), np.float32)),
}


@pytest.mark.parametrize("exif_rotation", [False, True])
def test_every_kind_has_pils_pixels_and_what_is_damaged_is_flagged(tmp_path, exif_rotation):
    source = FolderSource(write(tmp_path, KINDS | DAMAGED), Decoding(exif_rotation))
    assert len(source) == len(KINDS) + len(DAMAGED)
    for index, (image, sound) in enumerate(decoded(source)):
        name = source.files[index]
        assert sound == (name in KINDS), name
        expected = opened(KINDS[name]) if sound else np.zeros((1, 1, 3))
        np.testing.assert_array_equal(image, expected, err_msg=name)


def test_sixteen_bits_are_scaled_and_rounded(tmp_path):
    """Every value there is, and colours; a TIFF's colours have their high byte, at most one off."""
    gray = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    colour = np.random.default_rng(0).integers(0, 65536, (64, 48, 3)).astype(np.uint16)
    dim = (gray // 16).astype(np.uint16)
    pixels = {"gray": gray, "dim": dim, "colour": colour}
    files = {
        "gray.png": tf.io.encode_png(gray[..., None]).numpy(),
        "colour.png": tf.io.encode_png(colour).numpy(),
        "gray.tif": encoded("TIFF", pixels=gray),
        "dim.tif": encoded("TIFF", pixels=dim),
    }
    source = FolderSource(write(tmp_path, files))
    for index, (image, sound) in enumerate(decoded(source)):
        assert sound
        values = pixels[source.files[index].split(".")[0]]
        expected = np.round(values / 257).astype(np.uint8)
        if expected.ndim == 2:
            expected = np.repeat(expected[..., None], 3, -1)
        np.testing.assert_array_equal(image, expected, err_msg=source.files[index])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientations_are_pils_where_asked_for(tmp_path, kind):
    contents = [encoded(kind, orientation=number) for number in range(1, 9)]
    ending = {"JPEG": "jpg", "TIFF": "tif"}.get(kind, kind)
    folder = write(tmp_path, {f"{n}.{ending}": c for n, c in enumerate(contents)})
    turned, plain = (decoded(FolderSource(folder, Decoding(rotate))) for rotate in (True, False))
    assert len({image.tobytes() for image, _ in turned}) == 8
    for content, (image, sound), (as_it_is, _) in zip(contents, turned, plain, strict=True):
        assert sound
        expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
        np.testing.assert_array_equal(image, np.asarray(expected))
        np.testing.assert_array_equal(as_it_is, opened(content))


def big_first(content):
    """The same JPEG with an Exif block in little-endian order, as cameras write it."""
    place = content.index(b"Exif\0\0") + 6
    assert content[place : place + 2] == b"MM"
    directory = b"II*\0" + (8).to_bytes(4, "little") + (1).to_bytes(2, "little")
    entry = b"".join(n.to_bytes(k, "little") for n, k in ((0x0112, 2), (3, 2), (1, 4), (6, 4)))
    return content[:place] + directory + entry + content[place + len(directory) + len(entry) :]


def test_exif_of_either_byte_order_is_read_and_nonsense_is_left_alone():
    upright, six = encoded(), encoded(orientation=6)
    place = six.index(b"Exif\0\0")
    cases = {
        upright: 1,
        six: 6,
        big_first(six): 6,
        encoded(orientation=9): 1,
        six[: place + 6] + b"\xff" * 20 + six[place + 26 :]: 1,
        six[: place + 6] + six[place + 200 :]: 1,
    }
    for content, expected in cases.items():
        assert pil_decode.orientation(content) == expected
        assert pixels.rule(content, Decoding(True)).orientation == expected


def test_pixels_of_32_bits_are_refused_by_name():
    with pytest.raises(ValueError, match=r"pixels of float32: --config\.white must say"):
        pixels.pixels(encoded("TIFF", pixels=np.ones((4, 5), np.float32)), pixels.RGB)
