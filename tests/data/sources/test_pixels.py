"""Images of any number of channels and bits are decoded to what was written, or refused."""

import io
import sys
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from moco_jax.base.errors import UserError
from moco_jax.data import sources
from moco_jax.data.packing import example
from moco_jax.data.sources import arrayrecord, pixels, refusals
from moco_jax.data.sources.folder import FolderSource
from moco_jax.data.sources.memory import ArraySource
from moco_jax.data.sources.pixels import Decoding, Unfit
from tests.data.pictures import PHOTO, decoded, encoded, write
from tests.data.sources.test_tar import tar
from tests.data.sources.test_tfrecord import records_to

BANDS = np.random.default_rng(0).integers(0, 65536, (40, 50, 5)).astype(np.uint16)
SMALL = (BANDS >> 8).astype(np.uint8)


def npy(values):
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def tiff(values, **options):
    library = pytest.importorskip("tifffile", reason="pip install '.[tiff]'")
    buffer = io.BytesIO()
    library.imwrite(buffer, values, **options)
    return buffer.getvalue()


def over_257(values):
    return np.round(values / 257).astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_arrays_are_what_was_written(channels):
    values = BANDS[..., :channels]
    floats = np.asarray([-1, 0, 0.25, 0.5, 1, 7, np.nan, np.inf, -np.inf, 0.999], np.float32)
    floats = np.repeat(floats.reshape(2, 5, 1), channels, axis=-1)
    eight = np.asarray([0, 0, 64, 128, 255, 255, 0, 255, 0, 255]).reshape(2, 5, 1)
    signed = values.astype(np.int16)
    cases = [
        (SMALL[..., :channels], 0, SMALL[..., :channels]),
        (SMALL[..., :channels], 9, SMALL[..., :channels]),
        (np.asfortranarray(values), 0, over_257(values)),
        (values.astype(">u2"), 10000, np.round(np.minimum(values / 10000, 1) * 255)),
        (values.astype(np.uint32), 65535, over_257(values)),
        (signed, 32767, np.floor(np.maximum(signed / 32767, 0) * 255 + 0.5)),
        (floats, 1, eight),
        (floats.astype(np.float64) * 4, 4, eight),
    ]
    for written, white, expected in cases:
        found = pixels.pixels(npy(written), Decoding(False, channels, white))
        assert found.dtype == np.uint8
        assert found.flags.c_contiguous
        np.testing.assert_array_equal(found, np.broadcast_to(expected, written.shape))
    if channels == 1:
        found = pixels.pixels(npy(SMALL[..., 0]), Decoding(channels=1))
        np.testing.assert_array_equal(found, SMALL[..., :1])


PLANES = BANDS.transpose(2, 0, 1)
TIFFS = {
    "interleaved": (BANDS, dict(photometric="minisblack", planarconfig="contig")),
    "planes": (PLANES, dict(photometric="minisblack", planarconfig="separate")),
    "pages": (PLANES, dict(photometric="minisblack")),
    "imagej": (PLANES, dict(imagej=True, metadata={"axes": "CYX"})),
    "imagej, of one slice": (PLANES[None, None], dict(imagej=True, metadata={"axes": "TZCYX"})),
    "ome": (PLANES, dict(ome=True, metadata={"axes": "CYX"})),
    "rgb and more": (BANDS, dict(photometric="rgb", extrasamples=["unspecified"] * 2)),
    "tiles": (
        BANDS,
        dict(
            photometric="minisblack",
            planarconfig="contig",
            tile=(16, 16),
            compression="zlib",
            predictor=True,
        ),
    ),
    "tiles of planes": (
        PLANES,
        dict(photometric="minisblack", planarconfig="separate", tile=(16, 16), compression="lzw"),
    ),
    "big": (BANDS, dict(photometric="minisblack", planarconfig="contig", bigtiff=True)),
    "other byte order": (
        BANDS,
        dict(photometric="minisblack", planarconfig="contig", byteorder=">"),
    ),
}


@pytest.mark.parametrize("kind", TIFFS)
def test_a_tiff_of_many_channels_is_what_was_written(kind):
    values, options = TIFFS[kind]
    content = tiff(values, **options)
    assert pixels.is_image(content)
    found = pixels.pixels(content, Decoding(channels=5))
    np.testing.assert_array_equal(found, over_257(BANDS))
    found = pixels.pixels(content, Decoding(channels=5, white=5000))
    np.testing.assert_array_equal(found, np.floor(np.minimum(BANDS / 5000, 1) * 255 + 0.5))
    with pytest.raises(Unfit, match="channels=4 is asked for, it has 5"):
        pixels.pixels(content, Decoding(channels=4))
    for place in (6, 200, len(content) // 2):
        with pytest.raises(Exception, match=r"."):
            pixels.pixels(content[:place], Decoding(channels=5))


def test_a_tiff_of_pages_that_pil_wrote_and_one_of_four_bands():
    pages = [Image.fromarray(SMALL[..., band]) for band in range(5)]
    buffer = io.BytesIO()
    pages[0].save(buffer, "TIFF", save_all=True, append_images=pages[1:])
    pytest.importorskip("tifffile", reason="pip install '.[tiff]'")
    found = pixels.pixels(buffer.getvalue(), Decoding(channels=5))
    np.testing.assert_array_equal(found, SMALL)
    content = tiff(SMALL[..., :4], photometric="rgb", extrasamples=["unspecified"])
    found = pixels.pixels(content, Decoding(channels=4))
    np.testing.assert_array_equal(found, SMALL[..., :4])


def test_colour_tiffs_have_all_their_bits_once_white_is_given():
    for values in (BANDS[..., :3], BANDS[..., :3].astype(np.float32)):
        content = tiff(values, photometric="rgb")
        found = pixels.pixels(content, Decoding(white=65535))
        np.testing.assert_array_equal(found, over_257(BANDS[..., :3]))
    eight = encoded("TIFF")
    np.testing.assert_array_equal(pixels.pixels(eight, Decoding(white=9)), PHOTO)
    gray = pixels.pixels(tiff(BANDS[..., :3], photometric="rgb"), Decoding(channels=1))
    expected = np.asarray(Image.fromarray(over_257(BANDS[..., :3])).convert("L"))
    np.testing.assert_array_equal(gray[..., 0], expected)


@pytest.mark.parametrize("white", [0, 40000])
def test_where_zero_is_white_a_tiff_is_turned_round(white):
    """In PIL's hands, and in tifffile's where a page of each channel has white at 0."""
    content = tiff(BANDS[..., 0], photometric="miniswhite")
    expected = 255 - pixels.to_eight_bits(BANDS[..., 0], white)
    for channels in (1, 3):
        found = pixels.pixels(content, Decoding(channels=channels, white=white))
        np.testing.assert_array_equal(found, np.repeat(expected[..., None], channels, -1))
    pages = tiff(PLANES, photometric="miniswhite")
    found = pixels.pixels(pages, Decoding(channels=5, white=white))
    np.testing.assert_array_equal(found, 255 - pixels.to_eight_bits(BANDS, white))


def test_a_tiff_of_more_than_one_image_is_refused():
    content = tiff(np.stack([PLANES, PLANES]), imagej=True, metadata={"axes": "ZCYX"})
    with pytest.raises(Unfit, match=r"a TIFF of axes ZCYX and shape \(2, 5, 40, 50\)"):
        pixels.pixels(content, Decoding(channels=5))


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("JPEG", "RGB"),
        ("JPEG", "L"),
        ("JPEG", "CMYK"),
        ("PNG", "RGBA"),
        ("PNG", "P"),
        ("PNG", "LA"),
        ("TIFF", "RGB"),
        ("WEBP", "RGB"),
        ("BMP", "1"),
    ],
)
def test_pictures_become_gray_as_pil_makes_them(kind, mode):
    content = encoded(kind, mode)
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("L"))
    found = pixels.pixels(content, Decoding(channels=1))
    np.testing.assert_array_equal(found, expected[..., None])


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "RGBA"), ("JPEG", "CMYK")])
def test_pictures_of_four_channels_keep_them(kind, mode):
    content = encoded(kind, mode)
    found = pixels.pixels(content, Decoding(channels=4))
    np.testing.assert_array_equal(found, np.asarray(Image.open(io.BytesIO(content))))
    for channels in (2, 5):
        with pytest.raises(Unfit, match=f"channels={channels} is asked for, it has 4"):
            pixels.pixels(content, Decoding(channels=channels))
    with pytest.raises(Unfit, match="channels=4 is asked for, it has 3"):
        pixels.pixels(encoded("JPEG"), Decoding(channels=4))


def test_sixteen_bits_and_white_are_the_same_everywhere(tmp_path):
    """Gray and colour PNG and gray TIFF, decoded by TensorFlow or in Python.

    Twelve bits that are kept in sixteen fill 0..255.
    """
    gray, colour = BANDS[..., :1] >> 4, BANDS[..., :3] >> 4
    files = {
        "gray.png": tf.io.encode_png(gray).numpy(),
        "colour.png": tf.io.encode_png(colour).numpy(),
        "gray.tif": encoded("TIFF", pixels=gray[..., 0]),
    }
    folder = write(tmp_path, files)
    for white, scaled in (0, over_257), (4095, lambda x: np.floor(x / 4095 * 255 + 0.5)):
        expected = {"gray": np.repeat(scaled(gray), 3, -1), "colour": scaled(colour)}
        source = FolderSource(folder, Decoding(white=white))
        for index, (image, sound) in enumerate(decoded(source)):
            assert sound
            np.testing.assert_array_equal(image, expected[source.files[index].split(".")[0]])
        lone = Image.fromarray(scaled(colour).astype(np.uint8)).convert("L")
        expected = {"gray": scaled(gray), "colour": np.asarray(lone)[..., None]}
        source = FolderSource(folder, Decoding(channels=1, white=white))
        for index, (image, sound) in enumerate(decoded(source)):
            assert sound
            np.testing.assert_array_equal(image, expected[source.files[index].split(".")[0]])
    four = pixels.pixels(tf.io.encode_png(BANDS[..., :4]).numpy(), Decoding(channels=4))
    np.testing.assert_array_equal(four, over_257(BANDS[..., :4]))
    single = encoded("TIFF", pixels=np.linspace(0, 2, 20, dtype=np.float32).reshape(4, 5))
    found = pixels.pixels(single, Decoding(white=2))
    expected = np.floor(np.linspace(0, 1, 20) * 255 + 0.5).reshape(4, 5)
    np.testing.assert_array_equal(found[..., 1], expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations_are_pils_for_other_channels_too(orientation):
    jpeg = encoded("JPEG", orientation=orientation)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(jpeg))).convert("L")
    found = pixels.pixels(jpeg, Decoding(True, 1))
    np.testing.assert_array_equal(found[..., 0], expected)
    upright = pixels.pixels(encoded("PNG"), Decoding())
    turned = ImageOps.exif_transpose(
        Image.open(io.BytesIO(encoded("PNG", orientation=orientation)))
    )
    np.testing.assert_array_equal(pixels.turn(upright, orientation), np.asarray(turned))


def test_tiffs_of_many_channels_are_always_turned_and_deep_pngs_where_asked_for():
    turned = dict(planarconfig="contig", extratags=[(274, 3, 1, 6, True)])
    content = tiff(BANDS, photometric="minisblack", **turned)
    for asked in (True, False):
        found = pixels.pixels(content, Decoding(asked, 5))
        np.testing.assert_array_equal(found, over_257(np.rot90(BANDS, -1)))
    colour = tiff(BANDS[..., :3], photometric="rgb", extratags=[(274, 3, 1, 6, True)])
    found = pixels.pixels(colour, Decoding(white=65535))
    np.testing.assert_array_equal(found, over_257(np.rot90(BANDS[..., :3], -1)))
    png, exif = tf.io.encode_png(BANDS[..., :1]).numpy(), Image.Exif()
    exif[274] = 6
    body = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = (len(body) - 4).to_bytes(4) + body + zlib.crc32(body).to_bytes(4)
    png = png[:33] + chunk + png[33:]
    for asked, expected in ((True, np.rot90(BANDS[..., :1], -1)), (False, BANDS[..., :1])):
        found = pixels.pixels(png, Decoding(asked, 1))
        np.testing.assert_array_equal(found, over_257(expected))


@pytest.mark.parametrize(
    ("values", "decoding", "message"),
    [
        (BANDS, Decoding(channels=4), "channels=4 is asked for, it has 5"),
        (BANDS[..., 0], Decoding(), "channels=3 is asked for, it has 1"),
        (BANDS[None], Decoding(channels=5), r"shape \(1, 40, 50, 5\), neither \[H, W, C\] nor"),
        (BANDS.astype(np.float32), Decoding(channels=5), r"float32: --config\.white must say"),
        (BANDS.astype(np.int16), Decoding(channels=5), r"int16: --config\.white must say"),
        (BANDS.astype(np.complex64), Decoding(channels=5, white=1), "pixels of complex64"),
        (np.asarray([{}, {}]).reshape(1, 2), Decoding(channels=1), "Object arrays cannot be load"),
        (BANDS[:0], Decoding(channels=5), r"no pixels: \(0, 50, 5\)"),
    ],
)
def test_arrays_that_are_something_else_are_refused(values, decoding, message):
    with pytest.raises(ValueError, match=message):
        pixels.pixels(npy(values), decoding)


@pytest.mark.parametrize("kind", ["folder", "tar", "tfrecord", "arrayrecord"])
def test_every_source_reads_arrays_and_refuses_what_differs(tmp_path, kind):
    contents = [npy(BANDS), npy(BANDS[..., :4]), npy(BANDS)[:-30], encoded()]
    if kind == "folder":
        write(tmp_path, {f"{n}.npy": content for n, content in enumerate(contents)})
    elif kind == "tar":
        tar(tmp_path / "x.tar", [(f"{n}.npy", content) for n, content in enumerate(contents)])
    elif kind == "tfrecord":
        records = [example(content, str(n), None) for n, content in enumerate(contents)]
        records_to(tmp_path / "x.tfrecord", records)
    else:
        pytest.importorskip("array_record", reason="pip install '.[arrayrecord]'")
        file = arrayrecord.writer(str(tmp_path / "x.array_record"))
        for content in contents:
            file.write(content)
        file.close()
    source = sources.open_source(kind, "train", str(tmp_path), None, Decoding(channels=5))
    (first, sound), *others = decoded(source)
    assert sound
    np.testing.assert_array_equal(first, over_257(BANDS))
    for image, sound in others:
        assert not sound
        assert image.shape == (1, 1, 5)
    reasons = [refusals.refusal(source, record) for record in source.read(np.arange(4))]
    expected = ["", "channels=5 is asked for, it has 4", "", "channels=5 is asked for, it has 3"]
    assert reasons == expected


def test_an_array_in_a_tar_is_the_image_only_without_a_picture(tmp_path):
    picture = encoded("PNG")
    members = [
        ("0.npy", npy(BANDS)),
        ("0.png", picture),
        ("1.emb.npy", npy(BANDS)),
        ("1.mask.png", picture),
    ]
    tar(tmp_path / "x.tar", members)
    source = sources.open_source("tar", "train", str(tmp_path))
    assert source.read(np.arange(2)).tolist() == [picture, picture]


def test_a_missing_package_is_named_before_anything_is_read_and_only_where_it_is_needed(
    tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "tifffile", None)
    monkeypatch.setattr(pixels, "lacks_tifffile", lambda: True)
    eight = encoded("TIFF")
    write(tmp_path / "some", {"0.png": encoded("PNG"), "1.tif": eight})
    tar(tmp_path / "x.tar", [("0.tif", eight)])
    for kind, place in (("folder", "some"), ("tar", "x.tar")):
        path = str(tmp_path / place)
        with pytest.raises(UserError, match=r"channels=5 and white=0, .*pip install tifffile"):
            sources.open_source(kind, "train", path, None, Decoding(channels=5))
        for decoding in (Decoding(), Decoding(channels=1), Decoding(white=9)):
            source = sources.open_source(kind, "train", path, None, decoding)
            assert all(sound for _, sound in decoded(source))
        # What is too large, or damaged otherwise, is for whoever counts such images.
        large = Decoding(channels=1, max_pixels=4)
        assert len(sources.open_source(kind, "train", path, None, large))
    write(tmp_path / "arrays", {"0.npy": npy(BANDS), "1.npy": npy(BANDS)})
    source = sources.open_source("folder", "", str(tmp_path / "arrays"), None, Decoding(channels=5))
    assert all(sound for _, sound in decoded(source))


def test_images_in_memory_have_the_channels_asked_for_or_are_refused():
    images = SMALL[None]
    source = ArraySource(images, None, "some", Decoding(channels=5))
    np.testing.assert_array_equal(source.read(np.zeros(1, int)), images)
    with pytest.raises(UserError, match=r"channels=3 is not what .* some have; channels=5 works"):
        ArraySource(images, None, "some")
    with pytest.raises(UserError, match=r"channels=1 is not what .* digits train have; channels=3"):
        sources.open_source("digits", "train", "", None, Decoding(channels=1))
