"""Transparent pixels are blended with the background as by PIL's paste, in graphs and in Python."""

import io
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from moco_jax.config import default_config
from moco_jax.data.configured import open_images
from moco_jax.data.sources import pixels, tf_decode
from moco_jax.data.sources.folder import FolderSource
from moco_jax.data.sources.pixels import Decoding
from tests.data.pictures import decoded, encoded, opened, write
from tests.data.sources.test_pixels import over_257, tiff
from tests.data.sources.test_tf_decode import KINDS

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (16, 256, 3)).astype(np.uint8)
ALPHA = np.tile(np.arange(256, dtype=np.uint8), (16, 1))
INDICES = RNG.integers(0, 16, (12, 30)).astype(np.uint8)
PALETTE = RNG.integers(0, 256, 256 * 3).astype(np.uint8)
DEEP = RNG.integers(0, 65536, (16, 20, 4)).astype(np.uint16)
SHARES = bytes(range(0, 240, 15))  # alpha of the first colours of a palette


def saved(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def coloured(alpha=ALPHA):
    return Image.fromarray(np.dstack([COLOURS, alpha]))


def palette(colours):
    image = Image.new("P", INDICES.shape[::-1])
    image.putdata(INDICES.ravel().tolist())
    image.putpalette(PALETTE[: 3 * colours].tobytes())
    return image


def pasted(content, background):
    """What PIL makes of it."""
    picture = Image.open(io.BytesIO(content)).convert("RGBA")
    canvas = Image.new("RGB", picture.size, (background,) * 3)
    canvas.paste(picture.convert("RGB"), mask=picture.getchannel("A"))
    return canvas


GRAY_ALPHA = Image.merge("LA", (Image.fromarray(COLOURS[..., 0].copy()), Image.fromarray(ALPHA)))
OF_EIGHT_BITS = {
    "alpha.png": saved(coloured()),
    "gray_alpha.png": saved(GRAY_ALPHA),
    "palette.png": saved(palette(256), transparency=SHARES),
    "palette_one.png": saved(palette(256), transparency=3),
    "gray_one.png": saved(Image.fromarray(INDICES * 17), transparency=5 * 17),
    "rgb_one.png": saved(Image.fromarray(COLOURS), transparency=tuple(COLOURS[0, 0].tolist())),
}
OTHERS = {
    "palette_of_four_bits.png": saved(palette(16), transparency=SHARES),
    "bits.png": saved(Image.fromarray(INDICES > 7), transparency=1),
    "one.gif": saved(palette(16), "GIF", transparency=2),
    "alpha.webp": saved(coloured(), "WEBP"),
    "lossless.webp": saved(coloured(), "WEBP", lossless=True, exact=True),
    "alpha.tif": saved(coloured(), "TIFF"),
}
OPAQUE = {f"opaque_{name}": content for name, content in KINDS.items()} | {
    "opaque_alpha.png": saved(coloured(np.full_like(ALPHA, 255))),
    "opaque_four_bits.png": saved(palette(16)),
}


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("background", [0, 200, 255])
def test_every_kind_is_pasted_as_pil_does_it(tmp_path, background):
    kinds = OF_EIGHT_BITS | OTHERS | (OPAQUE if background == 200 else {})
    folder = write(tmp_path, kinds | {"cut.png": OF_EIGHT_BITS["alpha.png"][:-900]})
    source = FolderSource(folder, Decoding(background=background))
    for name, (image, sound) in zip(source.files, decoded(source), strict=True):
        assert sound == (name != "cut.png"), name
        if not sound:
            continue
        expected = pasted(kinds[name], background)
        np.testing.assert_array_equal(image, np.asarray(expected), err_msg=name)
        found = pixels.pixels(kinds[name], source.decoding)
        np.testing.assert_array_equal(found, np.asarray(expected), err_msg=name)
        found = pixels.pixels(kinds[name], Decoding(channels=1, background=background))
        np.testing.assert_array_equal(found[..., 0], np.asarray(expected.convert("L")), name)
        if background == 200:
            changed = (image != pixels.pixels(kinds[name], Decoding())).any()
            assert changed == (name not in OPAQUE), name


def test_transparency_that_is_blended_is_left_to_python_and_opaque_pictures_to_the_graph():
    graph = tf.function(tf_decode.decode_image, [tf.TensorSpec([], tf.string)])
    decoding = Decoding(background=255)
    for content in (*OF_EIGHT_BITS.values(), *OTHERS.values(), tf.io.encode_png(DEEP).numpy()):
        assert pixels.rule(content, decoding).way == pixels.PYTHON
    assert pixels.rule(OF_EIGHT_BITS["alpha.png"], Decoding()).way == pixels.PNG
    for name, way in (("opaque_rgb.PNG", pixels.PNG), ("opaque_best.jpg", pixels.JPEG)):
        assert pixels.rule(OPAQUE[name], decoding).way == way
        np.testing.assert_array_equal(graph(tf.constant(OPAQUE[name])), opened(OPAQUE[name]), name)


def blended(colours, alpha, background):
    """The closed form, for uint8 `colours` `[H, W, C]` and `alpha` `[H, W]`."""
    share = alpha.astype(np.float64)[..., None] / 255
    return np.round(colours * share + background * (1 - share)).astype(np.uint8)


def transparent_colour(png, *values):
    """A PNG in which the colour of these sixteen-bit values is transparent."""
    body = b"tRNS" + b"".join(int(value).to_bytes(2) for value in values)
    chunk = (len(body) - 4).to_bytes(4) + body + zlib.crc32(body).to_bytes(4)
    return png[:33] + chunk + png[33:]


@pytest.mark.parametrize("white", [0, 40000])
def test_sixteen_bits_are_blended_after_they_became_eight(tmp_path, white):
    """PIL has no such pictures; alpha is over 257 whatever `white` says of colours."""
    some = DEEP.copy()
    some[..., 3] = 65535
    some[::2, :, 3] = 0
    some[..., :3][some[..., 3] == 0] = some[0, 0, :3]
    lone = some[..., :1].copy()
    opaque = np.dstack([DEEP[..., :3], DEEP[..., :1] | 65535])
    kinds = {
        "alpha.png": (tf.io.encode_png(DEEP), DEEP),
        "gray_alpha.png": (tf.io.encode_png(DEEP[..., 2:]), DEEP[..., [2, 2, 2, 3]]),
        "opaque.png": (tf.io.encode_png(DEEP[..., :3]), opaque),
    }
    files = {name: png.numpy() for name, (png, _) in kinds.items()}
    values = {name: found for name, (_, found) in kinds.items()}
    colours = tf.io.encode_png(some[..., :3]).numpy()
    files["rgb_one.png"] = transparent_colour(colours, *some[0, 0, :3])
    files["gray_one.png"] = transparent_colour(tf.io.encode_png(lone).numpy(), *some[0, 0, :1])
    values["rgb_one.png"] = some
    values["gray_one.png"] = some[..., [0, 0, 0, 3]]
    source = FolderSource(write(tmp_path, files), Decoding(white=white, background=201))
    for name, (image, sound) in zip(source.files, decoded(source), strict=True):
        assert sound
        colours, alpha = values[name][..., :3], over_257(values[name][..., 3])
        eight = pixels.to_eight_bits(colours, white)
        expected = blended(eight, alpha, 201)
        np.testing.assert_array_equal(image, expected, name)
        np.testing.assert_array_equal(pixels.pixels(files[name], source.decoding), expected, name)
        found = pixels.pixels(files[name], Decoding(channels=1, white=white, background=201))
        gray = np.asarray(Image.fromarray(expected).convert("L"))
        np.testing.assert_array_equal(found[..., 0], gray, name)


def test_colour_tiffs_of_many_bits_are_blended_where_their_fourth_sample_is_alpha():
    decoding = Decoding(white=65535, background=90)
    colours, alpha = over_257(DEEP[..., :3]), over_257(DEEP[..., 3])
    shares = (DEEP / np.asarray([1, 1, 1, 65535])).astype(np.float32)
    for values in (DEEP, shares):
        content = tiff(values, photometric="rgb", extrasamples=["unassalpha"])
        found = pixels.pixels(content, decoding)
        np.testing.assert_array_equal(found, blended(colours, alpha, 90))
        np.testing.assert_array_equal(pixels.pixels(content, Decoding(white=65535)), colours)
    other = tiff(DEEP, photometric="rgb", extrasamples=["unspecified"])
    np.testing.assert_array_equal(pixels.pixels(other, decoding), colours)


def test_the_images_of_a_run_stand_on_its_background(tmp_path):
    config = default_config()
    config.update({"dataset": "folder", "background": 77, "exif_rotation": True})
    config.data_dir = write(tmp_path, {"0.png": OF_EIGHT_BITS["alpha.png"]})
    ((image, _),) = decoded(open_images(config, "", None))
    np.testing.assert_array_equal(image, np.asarray(pasted(OF_EIGHT_BITS["alpha.png"], 77)))


def test_transparency_that_is_a_channel_stays_one():
    content = encoded("PNG", "RGBA")
    expected = pixels.pixels(content, Decoding(channels=4))
    found = pixels.pixels(content, Decoding(channels=4, background=255))
    np.testing.assert_array_equal(found, expected)
