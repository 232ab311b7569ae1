"""A generated corpus of image files, and what PIL makes of each.

Every kind has at least twenty members: formats, modes, sizes and odd headers, drawn with a fixed
seed. PIL's pixels are expected, except of sixteen bits, which PIL does not convert (v / 257,
rounded), and of half-written JPEGs, whose missing part PIL may take for pixels.
`python -m tests.data.sources.test_corpus` prints a table.
"""

import functools
import io
import itertools
import struct
import warnings
import zlib

import numpy as np
from PIL import Image, ImageOps

from moco_jax.data.sources.pixels import EXTENSIONS

DAMAGED = None
ORIENTATION = 0x0112


def saved(image, kind, **options):
    """`image` as a file of this kind."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def drawn(rng, channels=3):
    """A smooth picture with noise, 17 to 32 pixels a side: uint8 `[H, W, C]`."""
    height, width = rng.integers(17, 33, 2)
    y, x = np.mgrid[0:height, 0:width]
    smooth = np.stack([x * 8, y * 8, x * 4 + y * 4, 255 - x * 7], -1)[..., :channels]
    return np.clip(smooth + rng.integers(-25, 25, smooth.shape), 0, 255).astype(np.uint8)


def picture(rng, mode="RGB"):
    """The same as a PIL image of this mode."""
    alpha = mode in ("LA", "RGBA")
    image = Image.fromarray(drawn(rng, 4 if alpha else 3))
    if mode == "LA":
        return Image.merge("LA", (image.convert("RGB").convert("L"), image.getchannel("A")))
    return image.quantize(200) if mode == "P" else image.convert(mode)


def by_pil(content, upright=False):
    """uint8 `[H, W, 3]`, or `DAMAGED` where PIL refuses."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(content)) as image:
                shown = ImageOps.exif_transpose(image) if upright else image
                return np.asarray(shown.convert("RGB"))
        except Exception:
            return DAMAGED


def gray(values):
    """Sixteen bits `[H, W]` -> what they look like, uint8 `[H, W, 3]`."""
    return np.repeat(np.round(values / 257).astype(np.uint8)[..., None], 3, -1)


def exif(value):
    """An Exif block that asks for this orientation."""
    block = Image.Exif()
    block[ORIENTATION] = value
    return block


def segment(marker, content):
    """A JPEG's."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def chunk(kind, body, wrong=0):
    """A PNG's; its checksum is changed by `wrong`."""
    total = zlib.crc32(kind + body) ^ wrong
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", total)


def after_start(content, *segments):
    """A JPEG with these segments behind its start."""
    return content[:2] + b"".join(segments) + content[2:]


def after_header(png, *chunks):
    """A PNG with these chunks behind its header."""
    return png[:33] + b"".join(chunks) + png[33:]


def without_adobe(jpeg):
    """A JPEG without its Adobe segment."""
    at = jpeg.index(b"Adobe")
    (length,) = struct.unpack(">H", jpeg[at - 2 : at])
    return jpeg[: at - 4] + jpeg[at - 2 + length :]


def ordinary_jpegs(rng):
    notes = (
        {},
        {"comment": b"words"},
        {"dpi": (72, 72)},
        {"icc_profile": b"x" * 300},
        {"exif": exif(1)},
    )
    for n, (mode, subsampling, progressive) in enumerate(
        itertools.product(("RGB", "L"), (0, 1, 2), (False, True))
    ):
        for quality in (30, 75, 95):
            options = dict(quality=quality, optimize=bool(n % 2), **notes[(n + quality) % 5])
            if mode == "RGB":
                options["subsampling"] = subsampling
            yield saved(picture(rng, mode), "JPEG", progressive=progressive, **options)
    yield after_start(saved(picture(rng), "JPEG"), segment(0xED, b"Photoshop 3.0\0" + b"y" * 900))
    yield saved(picture(rng), "JPEG", restart_marker_rows=1) + b"behind the end"


def odd_jpegs(rng):
    for quality in (40, 85, 95):
        ink = saved(picture(rng, "CMYK"), "JPEG", quality=quality)
        yield ink
        yield without_adobe(ink)
        at = ink.index(b"Adobe") + 11
        yield ink[:at] + b"\2" + ink[at + 1 :]
        yield saved(picture(rng), "JPEG", keep_rgb=True, quality=quality)
        plain = saved(picture(rng), "JPEG", quality=quality)
        yield after_start(plain, b"\xff\xff")  # padded
        yield after_start(plain, b"\0\0\0")  # junk between segments
        yield after_start(plain, segment(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([quality % 3])))
        yield after_start(plain[:2] + plain[20:], segment(0xFE, b"no JFIF"))
        yield after_start(plain, segment(0xE2, b"MPF\0II*\0"))
        yield after_start(plain, segment(0xE0, b"JFIF"))
        yield after_start(plain, segment(0xED, b"Photoshop 3.0\x008BIM\4\4"))
        yield saved(picture(rng), "MPO", save_all=True, append_images=[picture(rng)])
        yield saved(picture(rng), "JPEG", quality=quality, subsampling="4:1:1")
        frame = plain.index(b"\xff\xc0") + 11
        yield plain[:frame] + b"\x11" + plain[frame + 1 :]  # says 4:4:4 of what is 4:2:0


def half_written_jpegs(rng):
    """Cut off, or with zeros where the rest was to be."""
    for progressive, subsampling in itertools.product((False, True), (0, 2)):
        whole = saved(picture(rng), "JPEG", progressive=progressive, subsampling=subsampling)
        for share in (0.6, 0.75, 0.9, 0.99):
            some = whole[: int(len(whole) * share)]
            yield some
            yield some + bytes(len(whole) - len(some))
        yield whole[:-1]
        yield whole[:-2] + b"\0\0"


def pngs(rng):
    sides = (
        b"",
        chunk(b"gAMA", struct.pack(">I", 45455)),
        chunk(b"pHYs", struct.pack(">IIB", 2835, 2835, 1)),
        chunk(b"tEXt", b"Comment\0words"),
        chunk(b"sRGB", b"\0"),
        chunk(b"zTXt", b"a\0\0" + zlib.compress(b"b")),
    )
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        for n, side in enumerate(sides):
            options = {"transparency": 3} if mode in ("L", "P") and n % 2 else {}
            yield after_header(saved(picture(rng, mode), "PNG", **options), side)
    for bits in (1, 2, 4):
        yield saved(picture(rng).quantize(2**bits), "PNG", bits=bits)
    yield saved(picture(rng).quantize(30), "PNG", transparency=bytes([0] * 9 + [128] * 21))
    yield saved(picture(rng), "PNG")[:-12]  # without its last chunk


def odd_pngs(rng):
    """Wrong checksums, here and there, and chunks that are cut or stand in the wrong place."""
    text = chunk(b"tEXt", b"a\0b")
    for mode in ("RGB", "L", "RGBA", "P"):
        png = saved(picture(rng, mode), "PNG")
        yield after_header(png, chunk(b"tEXt", b"a\0b", wrong=1))
        yield after_header(png, chunk(b"gAMA", b"\0\0\0\1", wrong=9))
        yield after_header(png, chunk(b"gAMA", b"\0"))
        yield after_header(png, chunk(b"abCd", b"private"))
        at = png.index(b"IDAT") + 4 + struct.unpack(">I", png[png.index(b"IDAT") - 4 :][:4])[0]
        yield png[:at] + bytes([png[at] ^ 255]) + png[at + 1 :]  # of the picture's data
        yield png[: at - 9] + bytes([png[at - 9] ^ 255]) + png[at - 8 :]
        yield png[: len(png) // 2]
        yield png[:-12] + text + png[-12:]
        yield png[:29] + b"\0\0\0\0" + png[33:]


def sixteen_bits(rng):
    """Gray PNG, TIFF of both byte orders where 0 is black or white, PGM, JPEG 2000."""
    for n in range(8):
        values = rng.integers(0, 65536, rng.integers(17, 33, 2)).astype(np.uint16)
        image = Image.fromarray(values)
        yield saved(image, "PNG"), gray(values)
        for order, photometric in (("<>"[n % 2], 0), ("<>"[n % 2], 1)):
            content = tiff_gray16(values, photometric, order)
            shown = gray(values) if photometric else 255 - gray(values)
            # PIL knows no such file that begins with MM and has white at 0.
            yield content, DAMAGED if by_pil(content) is DAMAGED else shown
        head = f"P5 {values.shape[1]} {values.shape[0]} 65535\n".encode()
        yield head + values.astype(">u2").tobytes(), gray(values)
        if ".jp2" in EXTENSIONS:
            yield saved(image, "JPEG2000"), gray(values)


def deep_pngs(rng):
    """Several channels of sixteen bits, of which PIL keeps eight, with all kinds of filters.

    The channels are gray with alpha, RGB, and RGBA.
    """
    for n in range(21):
        channels = 2 + n % 3
        values = rng.integers(0, 65536, (*rng.integers(17, 33, 2), channels)).astype(np.uint16)
        rows = filtered(values.astype(">u2").view(np.uint8).reshape(len(values), -1), 2 * channels)
        colour = {2: 4, 3: 2, 4: 6}[channels]
        head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour, 0, 0, 0)
        content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows))
        shown = gray(values[..., 0]) if channels == 2 else np.round(values[..., :3] / 257)
        yield content + chunk(b"IEND", b""), shown.astype(np.uint8)


def filtered(rows, step):
    """A PNG's rows uint8 `[H, n]` behind a filter each, none, left or above in turn."""
    made = b""
    for n, row in enumerate(rows):
        kind, before = n % 3, np.zeros_like(row)
        if kind == 1:
            before[step:] = row[:-step]
        elif kind == 2:
            before = rows[n - 1]
        made += bytes([kind]) + (row - before).tobytes()
    return made


def tiff_gray16(pixels, photometric, order):
    """An uncompressed gray TIFF of sixteen bits."""
    height, width = pixels.shape
    entries = [
        (256, 4, width),
        (257, 4, height),
        (258, 3, 16),
        (259, 3, 1),
        (262, 3, photometric),
        (273, 4, 8),
        (277, 3, 1),
        (278, 4, height),
        (279, 4, pixels.size * 2),
    ]
    data = pixels.astype(f"{order}u2").tobytes()
    made = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(data)) + data
    made += struct.pack(f"{order}H", len(entries))
    for tag, kind, value in entries:
        made += struct.pack(f"{order}HHI", tag, kind, 1)
        made += (
            struct.pack(f"{order}HH", value, 0) if kind == 3 else struct.pack(f"{order}I", value)
        )
    return made + struct.pack(f"{order}I", 0)


def gifs(rng):
    for n in range(12):
        image = picture(rng).quantize(int(rng.integers(2, 256)))
        gif = saved(image, "GIF", interlace=n % 2, **({"transparency": n % 2} if n % 3 else {}))
        yield gif
        wider = struct.pack("<HH", image.width + n, image.height + 5)
        yield gif[:6] + wider + gif[10:]  # a canvas larger than its frame
    for _ in range(4):
        frames = [picture(rng, "P").resize((20, 20)) for _ in range(3)]
        yield saved(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=40)


def damaged_gifs(rng):
    """Bytes of the compressed data have changed; PIL reads some of them, and refuses most."""
    for _ in range(24):
        gif = bytearray(saved(picture(rng, "P"), "GIF"))
        at = int(rng.integers(len(gif) * 3 // 4, len(gif) - 6))
        gif[at : at + 4] = bytes([10, 0, 12, 0])
        yield bytes(gif)


def bmps(rng):
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        for _ in range(4):
            yield saved(picture(rng, mode), "BMP")
    cut = saved(picture(rng), "BMP")
    yield cut[: len(cut) // 2]


def tiffs(rng):
    for mode, packed in itertools.product(
        ("1", "L", "P", "RGB", "RGBA", "CMYK"), (None, "tiff_lzw", "tiff_adobe_deflate")
    ):
        yield saved(picture(rng, mode), "TIFF", compression=packed)
    yield saved(picture(rng), "TIFF", save_all=True, append_images=[picture(rng)])
    for value in range(2, 9):
        yield saved(picture(rng), "TIFF", tiffinfo={ORIENTATION: value})
    yield saved(picture(rng), "TIFF")[:-600]


def webps(rng):
    for mode, lossless in itertools.product(("RGB", "RGBA", "L"), (False, True)):
        for quality in (20, 60, 90):
            yield saved(picture(rng, mode), "WEBP", lossless=lossless, quality=quality)
    for _ in range(3):
        frames = [picture(rng).resize((20, 20)) for _ in range(2)]
        yield saved(frames[0], "WEBP", save_all=True, append_images=frames[1:])
    yield saved(picture(rng), "WEBP")[:-40]


def netpbms(rng):
    for _ in range(5):
        for mode in ("1", "L", "RGB"):
            yield saved(picture(rng, mode), "PPM")
        values = drawn(rng)
        height, width = values.shape[:2]
        body = " ".join(map(str, values.ravel())).encode()
        yield f"P3\n# words\n{width} {height}\n255\n".encode() + body
        yield f"P6 {width} {height} 200\n".encode() + np.minimum(values, 200).tobytes()
    yield b"P6 30 30 255\n" + bytes(900)


def newer(rng):
    """JPEG 2000 and AVIF, where this Pillow reads them."""
    kinds = [("JPEG2000", {})] if ".jp2" in EXTENSIONS else []
    kinds += [("AVIF", {"speed": 10})] if ".avif" in EXTENSIONS else []
    for (kind, options), mode in itertools.product(kinds, ("L", "RGB", "RGBA") * 4):
        yield saved(picture(rng, mode), kind, **options)


def xmp(value):
    """A packet of XMP that asks for this orientation."""
    description = f'<rdf:Description tiff:Orientation="{value}"/>'
    return f'<x:xmpmeta xmlns:x="adobe:ns:meta/">{description}</x:xmpmeta>'.encode()


def as_long(value, order):
    """An Exif block in which the orientation is a number of four bytes."""
    head = b"II*\0" if order == "<" else b"MM\0*"
    return b"Exif\0\0" + head + struct.pack(f"{order}IHHHIII", 8, 1, ORIENTATION, 4, 1, value, 0)


def rotated(rng):
    """An orientation written in all kinds of places; `exif_rotation` is asked for."""
    for value in range(1, 9):
        plain = saved(picture(rng), "JPEG")
        turned = saved(picture(rng), "JPEG", exif=exif(value))
        yield turned
        yield after_start(turned, *[segment(0xED, b"Photoshop 3.0\0" + b"x" * 65000)] * 3)
        yield after_start(turned, segment(0xFE, b"Exif\0\0 is what follows"))
        yield after_start(plain, segment(0xE1, as_long(value, "<>"[value % 2])))
        yield after_start(plain, segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp(value)))
        yield after_start(
            plain, segment(0xE1, b"Exif\0\0" + bytes(rng.integers(0, 256, 40).tolist()))
        )
        png = saved(picture(rng), "PNG")
        block = exif(value).tobytes()
        words = f"\nexif\n{len(block):8}\n{block.hex()}\n".encode()
        yield saved(picture(rng), "PNG", exif=exif(value))
        yield after_header(png, chunk(b"tEXt", b"Raw profile type exif\0" + words))
        yield after_header(png, chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(words)))
        yield after_header(png, chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(value)))
        yield saved(picture(rng), "WEBP", exif=exif(value))
        yield saved(picture(rng), "TIFF", tiffinfo={ORIENTATION: value})


def too_large(rng):
    """Headers that claim more pixels than `max_pixels`, and hardly any data."""
    for _ in range(4):
        width, height = (int(n) for n in rng.integers(20000, 65000, 2))
        png = saved(picture(rng), "PNG")
        head = struct.pack(">II", width, height) + png[24:29]
        yield png[:8] + chunk(b"IHDR", head) + png[33:]
        jpeg = saved(picture(rng), "JPEG")
        at = jpeg.index(b"\xff\xc0") + 5
        yield jpeg[:at] + struct.pack(">HH", height, width) + jpeg[at + 4 :]
        gif = saved(picture(rng, "P"), "GIF")
        yield gif[:6] + struct.pack("<HH", width, height) + gif[10:]
        bmp = saved(picture(rng), "BMP")
        yield bmp[:18] + struct.pack("<ii", width, height) + bmp[26:]
        yield f"P6 {width} {height} 255\n".encode() + bytes(99)


def words(rng):
    """What is no picture at all."""
    starts = (
        b"",
        b"<html>",
        b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a",
        b"BM",
        b"RIFF",
        b"II*\0",
        b"P6 ",
        b"\0\0",
    )
    for start in starts:
        yield start
        yield start + rng.integers(0, 256, 60).astype(np.uint8).tobytes()


KINDS = {
    "JPEG, ordinary": ordinary_jpegs,
    "JPEG, odd": odd_jpegs,
    "JPEG, half written": half_written_jpegs,
    "PNG": pngs,
    "PNG, odd": odd_pngs,
    "PNG of 16 bits, colours": deep_pngs,
    "gray of 16 bits": sixteen_bits,
    "GIF": gifs,
    "GIF, damaged": damaged_gifs,
    "BMP": bmps,
    "TIFF": tiffs,
    "WebP": webps,
    "PPM, PGM, PBM": netpbms,
    "JPEG 2000, AVIF": newer,
    "rotated": rotated,
    "too large": too_large,
    "no picture": words,
}
BY_RULE = {"JPEG, half written", "too large"}  # damaged, whatever PIL says


@functools.cache
def members(kind):
    """[(content, pixels as PIL has them, or `DAMAGED`)] of one of `KINDS`."""
    found = []
    for member in KINDS[kind](np.random.default_rng(list(KINDS).index(kind))):
        if isinstance(member, tuple):
            found.append(member)
        else:
            expected = DAMAGED if kind in BY_RULE else by_pil(member, kind == "rotated")
            found.append((member, expected))
    return found
