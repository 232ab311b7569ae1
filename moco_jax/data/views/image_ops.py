"""Operations on one uint8 image in a TensorFlow graph, with the pixels of torchvision on PIL.

PIL rounds or cuts to uint8 after every operation; so do these. They work on planes `[C, W, H]`,
columns first as `resize.py` leaves them, or, where an operation mixes colours, on these packed
to one int32 a pixel: XLA then compiles each operation (or several in a row) to one loop over
contiguous values.
"""

from collections.abc import Sequence

import tensorflow as tf


def to_planes(image: tf.Tensor) -> tf.Tensor:
    """Transpose `[H, W, C]` to `[C, W, H]`."""
    return tf.transpose(image, (2, 1, 0))


# XLA takes a third of the time of TensorFlow's own loop.
@tf.function(jit_compile=True, reduce_retracing=True, autograph=False)
def to_pixels(planes: tf.Tensor) -> tf.Tensor:
    """Transpose `[C, W, H]` to `[H, W, C]`."""
    return tf.transpose(planes, (2, 1, 0))


def pack(planes: tf.Tensor) -> tf.Tensor:
    """Pack uint8 `[3, W, H]` into int32 `[W, H]`: red in the lowest byte, then green, then blue."""
    return _packed(tf.unstack(tf.cast(planes, tf.int32)))


def unpack(packed: tf.Tensor) -> tf.Tensor:
    """Unpack int32 `[W, H]` to uint8 `[3, W, H]`."""
    return tf.cast(tf.stack(_channels(packed)), tf.uint8)


def _packed(channels: Sequence[tf.Tensor]) -> tf.Tensor:
    red, green, blue = channels
    return red | tf.bitwise.left_shift(green, 8) | tf.bitwise.left_shift(blue, 16)


def _channels(packed: tf.Tensor) -> list[tf.Tensor]:
    return [tf.bitwise.right_shift(packed, 8 * channel) & 255 for channel in range(3)]


def luma(packed: tf.Tensor) -> tf.Tensor:
    """Compute PIL's mode L: int32 `[W, H]` from ITU-R 601 weights in 16-bit fixed point."""
    red, green, blue = _channels(packed)
    return tf.bitwise.right_shift(red * 19595 + green * 38470 + blue * 7471 + 0x8000, 16)


def grayscale(packed: tf.Tensor) -> tf.Tensor:
    """Replace the channels by luma."""
    return luma(packed) * 0x010101


def _blend(start: tf.Tensor, packed: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Blend as PIL does: `start + factor (channel - start)`, clipped, then cut to 8 bits."""

    def blended(channel: tf.Tensor) -> tf.Tensor:
        value = start + factor * (tf.cast(channel, tf.float32) - start)
        return tf.cast(tf.clip_by_value(value, 0, 255), tf.int32)

    return _packed([blended(channel) for channel in _channels(packed)])


def adjust_brightness(packed: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Move the image towards black (factor 0) or away from it."""
    return _blend(tf.zeros([], tf.float32), packed, factor)


def adjust_contrast(packed: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Move the image towards its rounded mean luma (factor 0) or away from it."""
    gray = luma(packed)
    mean = tf.cast(tf.reduce_sum(gray), tf.float32) / tf.cast(tf.size(gray), tf.float32)
    return _blend(tf.floor(mean + 0.5), packed, factor)


def adjust_saturation(packed: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Move the image towards grayscale (factor 0) or away from it."""
    return _blend(tf.cast(luma(packed), tf.float32), packed, factor)


def adjust_hue(packed: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Turn the hue by `factor` of the circle, through PIL's HSV of 8 bits a channel.

    PIL holds float64 where it cuts hue and saturation to whole numbers; float32 cuts one colour
    in a thousand differently, by one of 255 steps.
    """
    r, g, b = (tf.cast(channel, tf.float32) for channel in _channels(packed))
    high, low = tf.maximum(tf.maximum(r, g), b), tf.minimum(tf.minimum(r, g), b)
    span = high - low
    red, green, blue = ((high - c) / tf.maximum(span, 1) for c in (r, g, b))
    hue = tf.where(r == high, blue - green, tf.where(g == high, 2 + red - blue, 4 + green - red))
    hue = hue / 6 + 1
    hue = tf.where(span > 0, tf.floor(tf.where(hue >= 1, hue - 1, hue) * 255), 0)
    saturation = tf.floor(span / tf.maximum(high, 1) * 255) / 255
    turned = hue + tf.cast(tf.cast(factor * 255, tf.int32), tf.float32) + 256
    sector = (turned - 256 * tf.floor(turned / 256)) * 6 / 255

    def channel(offset: int) -> tf.Tensor:
        """Compute a channel: full in a sixth of the circle, absent a third away, linear between."""
        place = sector + offset
        place = place - 6 * tf.floor(place / 6)
        lack = tf.clip_by_value(tf.minimum(place, 4 - place), 0, 1)
        return tf.cast(high * (1 - saturation * lack) + 0.5, tf.int32)

    return _packed([channel(5), channel(3), channel(1)])


def solarize(x: tf.Tensor) -> tf.Tensor:
    """Invert the values from 128 on, in planes uint8 `[C, W, H]` or packed int32 `[W, H]`."""
    one = tf.cast(0x010101, x.dtype)  # 1 in every channel of a packed pixel
    bright = tf.bitwise.right_shift(x, 7) & one
    return tf.bitwise.bitwise_xor(x, bright * 255)


def horizontal_flip(x: tf.Tensor) -> tf.Tensor:
    """Exchange left and right, in planes or packed `[..., W, H]`."""
    return x[..., ::-1, :]


def _widen(planes: tf.Tensor, axis: int) -> tf.Tensor:
    """Repeat the first and the last line along `axis` twice more at each end."""
    first = tf.gather(planes, [0, 0], axis=axis)
    last = tf.gather(planes, [tf.shape(planes)[axis] - 1] * 2, axis=axis)
    return tf.concat([first, planes, last], axis)


def _box(planes: tf.Tensor, weights: tf.Tensor, axis: int) -> tf.Tensor:
    """Apply one box pass to planes that are two lines wider at each end.

    It has five taps in PIL's fixed point.
    """
    x = tf.cast(planes, tf.uint32)
    length = x.shape[axis] - 4
    a, b, c, d, e = (
        x[:, k : k + length] if axis == 1 else x[:, :, k : k + length] for k in range(5)
    )
    total = weights[0] * c + weights[1] * (b + d) + weights[2] * (a + e)
    half, bits = tf.constant(2**23, tf.uint32), tf.constant(24, tf.uint32)
    return tf.cast(tf.bitwise.right_shift(total + half, bits), tf.uint8)


_compiled_box = tf.function(_box, jit_compile=True, autograph=False)


def gaussian_blur(planes: tf.Tensor, sigma: tf.Tensor) -> tf.Tensor:
    """Blur as PIL's GaussianBlur(radius=sigma), sigma up to 2.8.

    It is three box passes in each direction, rounded to uint8 after each. The box has radius l +
    a: sigma^2 / 3 is matched by a whole part l (0 or 1) and an edge of weight a. Each pass is
    compiled alone: XLA would otherwise compute the passes again for every tap of the next.
    """
    variance = sigma * sigma / 3
    whole = tf.floor((tf.sqrt(12 * variance + 1) - 1) / 2)
    fraction = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    fraction = fraction / (6 * (variance - (whole + 1) ** 2))
    # PIL's weights are whole multiples of 2^-24, and PIL divides in float32.
    total = 2**24
    center = tf.cast(tf.floor(tf.cast(total, tf.float32) / (2 * (whole + fraction) + 1)), tf.int32)
    edge = (total - center * (2 * tf.cast(whole, tf.int32) + 1)) // 2
    near, far = tf.where(whole < 1, edge, center), tf.where(whole < 1, tf.zeros_like(edge), edge)
    weights = tf.cast(tf.stack([center, near, far]), tf.uint32)
    for axis in (1, 2):
        for _ in range(3):
            planes = _compiled_box(_widen(planes, axis), weights, axis)
    return planes
