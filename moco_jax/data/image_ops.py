"""Each operation on one uint8 RGB image in a TensorFlow graph, with the pixels that torchvision on PIL gives.

PIL rounds or cuts to uint8 after every operation; so do these. Images are uint8 `[H, W, 3]` throughout.
"""

import tensorflow as tf


def crop_and_resize(image: tf.Tensor, box: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """The part `box` int32 (top, left, height, width) of `image`, resized to `size` (height, width).

    Bilinear with antialiasing, of the cropped pixels alone, as `torchvision.transforms.functional.resized_crop`:
    first along rows, then along columns, rounded to uint8 after each.
    """
    part = tf.slice(image, [box[0], box[1], 0], [box[2], box[3], 3])
    for shape in ((box[2], size[1]), size):
        part = _round_half_up(tf.image.resize(part, shape, antialias=True))
    return part


def horizontal_flip(image: tf.Tensor) -> tf.Tensor:
    """Left and right exchanged."""
    return image[:, ::-1]


def luma(image: tf.Tensor) -> tf.Tensor:
    """PIL's mode L: int32 `[H, W, 1]` from ITU-R 601 weights in sixteen-bit fixed point."""
    x = tf.cast(image, tf.int32)
    total = x[..., 0:1] * 19595 + x[..., 1:2] * 38470 + x[..., 2:3] * 7471 + 0x8000
    return tf.bitwise.right_shift(total, 16)


def grayscale(image: tf.Tensor) -> tf.Tensor:
    """Three equal channels of luma."""
    return tf.repeat(tf.cast(luma(image), tf.uint8), 3, axis=-1)


def _to_uint8(x: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.clip_by_value(x, 0, 255), tf.uint8)


def _round_half_up(x: tf.Tensor) -> tf.Tensor:
    return _to_uint8(tf.floor(x + 0.5))


def _blend(start: tf.Tensor, image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """PIL's Image.blend: `start + factor (image - start)`, clipped, then cut (not rounded) to uint8."""
    return _to_uint8(start + factor * (tf.cast(image, tf.float32) - start))


def adjust_brightness(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Towards black (factor 0) or away from it."""
    return _blend(tf.zeros([], tf.float32), image, factor)


def adjust_contrast(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Towards the rounded mean of the image's luma (factor 0) or away from it."""
    gray = luma(image)
    mean = tf.reduce_sum(tf.cast(gray, tf.int64)) / tf.size(gray, tf.int64)
    return _blend(tf.cast(tf.floor(mean + 0.5), tf.float32), image, factor)


def adjust_saturation(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Towards grayscale (factor 0) or away from it."""
    return _blend(tf.cast(luma(image), tf.float32), image, factor)


def adjust_hue(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Hue turned by `factor` of the circle, through PIL's HSV with its eight bits a channel.

    Bit for bit: wherever PIL cuts to a whole number it holds float64, so float32 would cut differently.
    """
    x = tf.cast(image, tf.float32)
    r, g, b = tf.unstack(x, axis=-1)
    high, low = tf.maximum(tf.maximum(r, g), b), tf.minimum(tf.minimum(r, g), b)
    span = high - low
    safe = tf.maximum(span, 1)
    red, green, blue = (tf.cast((high - c) / safe, tf.float64) for c in (r, g, b))
    hue = tf.where(r == high, blue - green, tf.where(g == high, 2 + red - blue, 4 + green - red))
    hue = tf.cast(tf.cast(hue, tf.float32), tf.float64) / 6 + 1
    hue = tf.cast(tf.where(hue >= 1, hue - 1, hue), tf.float32)
    hue = tf.where(span > 0, tf.cast(tf.cast(hue, tf.float64) * 255, tf.int32), 0)
    saturation = tf.cast(tf.cast(span / tf.maximum(high, 1), tf.float64) * 255, tf.int32)
    turned = tf.bitwise.bitwise_and(hue + tf.cast(factor * 255, tf.int32), 255)

    sector = turned * 6 // 255
    f = tf.cast(turned * 6 - sector * 255, tf.float64) / 255
    # TensorFlow's casts and products are PIL's: f and s in float32, what is subtracted from 1 in float64.
    f, s = tf.cast(f, tf.float32), tf.cast(saturation, tf.float32) / 255
    v = tf.cast(high, tf.float64)
    rest = 1 - tf.cast(f, tf.float64)
    p = v * (1 - tf.cast(s, tf.float64))
    q = v * (1 - tf.cast(s * f, tf.float64))
    t = v * (1 - tf.cast(s, tf.float64) * rest)
    v, p, q, t = (tf.cast(tf.floor(x + 0.5), tf.int32) for x in (v, p, q, t))
    gray = saturation == 0
    p, q, t = (tf.where(gray, v, x) for x in (p, q, t))
    place = sector % 6

    def pick(*six: tf.Tensor) -> tf.Tensor:
        out = six[5]
        for number in range(5):
            out = tf.where(place == number, six[number], out)
        return out

    channels = [pick(v, q, p, p, t, v), pick(t, v, v, q, p, p), pick(p, p, t, v, v, q)]
    return tf.cast(tf.stack(channels, axis=-1), tf.uint8)


def _box(image: tf.Tensor, axis: int, center: tf.Tensor, edge: tf.Tensor) -> tf.Tensor:
    """One box pass of radius 1 plus a fraction: five taps (edge, center, center, center, edge)."""
    length = tf.shape(image)[axis]
    steps = tf.range(length)

    def shifted(by: int) -> tf.Tensor:
        return tf.gather(image, tf.clip_by_value(steps + by, 0, length - 1), axis=axis)

    inner = image + shifted(-1) + shifted(1)
    return tf.floor(center * inner + edge * (shifted(-2) + shifted(2)) + 0.5)


def _small_box(image: tf.Tensor, axis: int, center: tf.Tensor, edge: tf.Tensor) -> tf.Tensor:
    """One box pass of radius below 1: three taps (edge, center, edge)."""
    length = tf.shape(image)[axis]
    steps = tf.range(length)
    before = tf.gather(image, tf.maximum(steps - 1, 0), axis=axis)
    after = tf.gather(image, tf.minimum(steps + 1, length - 1), axis=axis)
    return tf.floor(center * image + edge * (before + after) + 0.5)


def gaussian_blur(image: tf.Tensor, sigma: tf.Tensor) -> tf.Tensor:
    """PIL's GaussianBlur(radius=sigma): three box passes in each direction, uint8 after each; sigma up to 2.8.

    The box has radius l + a: sigma^2 / 3 is matched by a whole part l and an edge of weight a.
    """
    variance = sigma * sigma / 3
    whole = tf.floor((tf.sqrt(12 * variance + 1) - 1) / 2)
    fraction = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    fraction = fraction / (6 * (variance - (whole + 1) ** 2))
    radius = whole + fraction
    # PIL's weights are whole multiples of 2^-24; float64 holds every product exactly, so ties round as in PIL.
    center = tf.floor(2.0**24 / tf.cast(2 * radius + 1, tf.float64))
    edge = tf.floor((2.0**24 - center * tf.cast(2 * whole + 1, tf.float64)) / 2)
    center, edge = center / 2.0**24, edge / 2.0**24
    x = tf.cast(image, tf.float64)

    def passes(box) -> tf.Tensor:
        out = x
        for axis in (1, 0):
            for _ in range(3):
                out = box(out, axis, center, edge)
        return out

    blurred = tf.cond(whole < 1, lambda: passes(_small_box), lambda: passes(_box))
    return _to_uint8(blurred)
