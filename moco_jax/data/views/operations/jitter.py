"""Colour jitter: brightness, contrast, saturation and hue change, in a drawn order.

torchvision's ColorJitter, as in the authors' `main_moco.py`: strengths 0.4, 0.4, 0.4, 0.4 always
(MoCo v1, section 3.3), or 0.4, 0.4, 0.4, 0.1 with probability 0.8 (v2); MoCo v3 takes BYOL's 0.4,
0.4, 0.2, 0.1 (Grill et al. 2020, appendix B). Pixels are PIL's: rounded or cut to uint8 after
each of the four.
"""

import dataclasses
import itertools
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from moco_jax.data.views.arrays import Arrays, of_jax, of_tensorflow
from moco_jax.data.views.operations.grayscale import luma_on_device, luma_on_host
from moco_jax.data.views.operations.stage import Operation, Probability

if TYPE_CHECKING:
    import tensorflow as tf

ORDERS = np.asarray(list(itertools.permutations(range(4))), np.int32)


@dataclasses.dataclass(frozen=True)
class Jitter(Operation):
    """Changes colours.

    Attributes:
        jitter: strengths of brightness, contrast, saturation and hue; one of 0 is left out.
        jitter_probability: of the change as a whole.
    """

    name: ClassVar = "color"
    # Factors and order are of brightness, contrast, saturation and hue.
    fields: ClassVar = {"color": ("bool",), "factors": ("float32", 4), "order": ("int32", 4)}
    uniforms: ClassVar = 6
    colours: ClassVar = True
    pixels: ClassVar = "packed"
    symmetric: ClassVar = True

    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    jitter_probability: Probability = 1.0

    @property
    def idle(self) -> bool:
        """Whether no view changes, for want of probability or of strength."""
        return super().idle or not any(self.jitter)

    def draw(
        self, arrays: Arrays, uniforms: Any, number: int, size: tuple[Any, Any]
    ) -> dict[str, Any]:
        """Draw whether colours change, four factors, and one of the 24 orders."""
        strengths = np.asarray(self.jitter, np.float32)
        centers = np.asarray([1, 1, 1, 0], np.float32)
        low = np.where(centers > 0, np.maximum(centers - strengths, 0), -strengths)
        order = arrays.cast(arrays.minimum(uniforms[5] * 24, 23), "int32")
        return {
            "color": uniforms[0] < self.chance(number),
            "factors": low + (centers + strengths - low) * uniforms[1:5],
            "order": arrays.take(ORDERS, order),
        }

    def on_host(self, x: "tf.Tensor", view: Any) -> "tf.Tensor":
        """Change packed pixels four times, in the drawn order.

        The four are a loop: unrolled, TensorFlow looks for constants among the pixels that each
        later choice is given, and compiling takes 15 s for 224 pixels a side where the loop takes
        one.
        """
        import tensorflow as tf

        def branch(number: int, packed: tf.Tensor):
            if not self.jitter[number]:
                return lambda: packed
            return lambda: ON_HOST[number](packed, view.factors[number])

        def apply_next(place: tf.Tensor, packed: tf.Tensor):
            changes = [branch(number, packed) for number in range(4)]
            return place + 1, tf.switch_case(view.order[place], changes)

        return tf.while_loop(lambda place, _: place < 4, apply_next, (tf.constant(0), x))[1]

    def on_device(self, planes: jax.Array, view: Any) -> jax.Array:
        """Change planes four times, in the drawn order.

        The four are a loop: unrolled, the compiler would fuse them and compute each pixel again
        for all that read it.
        """

        def apply_next(planes: jax.Array, chosen: jax.Array) -> tuple[jax.Array, None]:
            changed = planes
            for number, operation in enumerate(ON_DEVICE):
                if self.jitter[number]:
                    result = operation(planes, view.factors[number])
                    changed = jnp.where(chosen == number, result, changed)
            return changed, None

        return jax.lax.scan(apply_next, planes, view.order)[0]


def _blend_on_host(start: "tf.Tensor", packed: "tf.Tensor", factor: "tf.Tensor") -> "tf.Tensor":
    """Blend as PIL does: `start + factor (channel - start)`, clipped, then cut to 8 bits."""
    import tensorflow as tf

    from moco_jax.data.views import host_pixels

    def blended(channel: tf.Tensor) -> tf.Tensor:
        value = start + factor * (tf.cast(channel, tf.float32) - start)
        return tf.cast(tf.clip_by_value(value, 0, 255), tf.int32)

    return host_pixels.join([blended(channel) for channel in host_pixels.split(packed)])


def brightness_on_host(packed: "tf.Tensor", factor: "tf.Tensor") -> "tf.Tensor":
    """Move the image towards black (factor 0) or away from it."""
    import tensorflow as tf

    return _blend_on_host(tf.zeros([], tf.float32), packed, factor)


def contrast_on_host(packed: "tf.Tensor", factor: "tf.Tensor") -> "tf.Tensor":
    """Move the image towards its rounded mean luma (factor 0) or away from it."""
    import tensorflow as tf

    gray = luma_on_host(packed)
    mean = tf.cast(tf.reduce_sum(gray), tf.float32) / tf.cast(tf.size(gray), tf.float32)
    return _blend_on_host(tf.floor(mean + 0.5), packed, factor)


def saturation_on_host(packed: "tf.Tensor", factor: "tf.Tensor") -> "tf.Tensor":
    """Move the image towards grayscale (factor 0) or away from it."""
    import tensorflow as tf

    return _blend_on_host(tf.cast(luma_on_host(packed), tf.float32), packed, factor)


def hue_on_host(packed: "tf.Tensor", factor: "tf.Tensor") -> "tf.Tensor":
    """Turn the hue by `factor` of the circle."""
    import tensorflow as tf

    from moco_jax.data.views import host_pixels

    channels = [tf.cast(channel, tf.float32) for channel in host_pixels.split(packed)]
    turned = _turn_hue(of_tensorflow(), channels, factor)
    return host_pixels.join([tf.cast(channel, tf.int32) for channel in turned])


def _blend_on_device(start: jax.Array, planes: jax.Array, factor: jax.Array) -> jax.Array:
    """Blend as `_blend_on_host` does."""
    start = start.astype(jnp.float32)
    blended = start + factor * (planes.astype(jnp.float32) - start)
    return jnp.clip(blended, 0, 255).astype(jnp.uint8)


def brightness_on_device(planes: jax.Array, factor: jax.Array) -> jax.Array:
    """Move uint8 `[3, H, W]` towards black (factor 0) or away from it."""
    return _blend_on_device(jnp.zeros((), jnp.float32), planes, factor)


def contrast_on_device(planes: jax.Array, factor: jax.Array) -> jax.Array:
    """Move uint8 `[3, H, W]` towards the image's rounded mean luma (factor 0) or away from it."""
    gray = luma_on_device(planes)
    mean = jnp.sum(gray).astype(jnp.float32) / gray.size
    return _blend_on_device(jnp.floor(mean + 0.5), planes, factor)


def saturation_on_device(planes: jax.Array, factor: jax.Array) -> jax.Array:
    """Move uint8 `[3, H, W]` towards grayscale (factor 0) or away from it."""
    return _blend_on_device(luma_on_device(planes), planes, factor)


def hue_on_device(planes: jax.Array, factor: jax.Array) -> jax.Array:
    """Turn the hue of uint8 `[3, H, W]` by `factor` of the circle."""
    turned = _turn_hue(of_jax(), list(planes.astype(jnp.float32)), factor)
    return jnp.stack(turned).astype(jnp.uint8)


def _turn_hue(arrays: Arrays, channels: list[Any], factor: Any) -> list[Any]:
    """Turn the hue of float32 red, green and blue, through PIL's HSV of 8 bits a channel.

    PIL holds float64 where it cuts hue and saturation to whole numbers; float32 cuts one colour
    in a thousand differently, by one of 255 steps. The result is to be cut to whole numbers.
    """
    floor, minimum, maximum, where = arrays.floor, arrays.minimum, arrays.maximum, arrays.where
    r, g, b = channels
    high, low = maximum(maximum(r, g), b), minimum(minimum(r, g), b)
    span = high - low
    red, green, blue = ((high - c) / maximum(span, 1) for c in (r, g, b))
    hue = where(r == high, blue - green, where(g == high, 2 + red - blue, 4 + green - red))
    hue = hue / 6 + 1
    hue = where(span > 0, floor(where(hue >= 1, hue - 1, hue) * 255), 0)
    saturation = floor(span / maximum(high, 1) * 255) / 255
    turned = hue + arrays.cast(arrays.cast(factor * 255, "int32"), "float32") + 256
    sector = (turned - 256 * floor(turned / 256)) * 6 / 255

    def channel(offset: int) -> Any:
        """Compute a channel: full in a sixth of the circle, absent a third away, linear between."""
        place = sector + offset
        place = place - 6 * floor(place / 6)
        lack = minimum(maximum(minimum(place, 4 - place), 0), 1)
        return high * (1 - saturation * lack) + 0.5

    return [channel(5), channel(3), channel(1)]


ON_HOST = (brightness_on_host, contrast_on_host, saturation_on_host, hue_on_host)
ON_DEVICE = (brightness_on_device, contrast_on_device, saturation_on_device, hue_on_device)
