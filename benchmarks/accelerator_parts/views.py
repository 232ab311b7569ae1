"""Part 3: pairs of views a second that the device makes of images that it holds."""

import time

import jax
import jax.numpy as jnp

from benchmarks import machine
from benchmarks.accelerator_parts.telling import given, require_accelerator, tell
from moco_jax.data.views import device_views, recipes
from moco_jax.parallel import xla_flags


def tell_pairs(augment: str, side: int, held: int, number: int, batch: int, times: int) -> None:
    """Hand over the pairs a second of one recipe, crop and drawing included.

    Args:
        augment: the recipe's name.
        side: of the views, in pixels.
        held: side of the images that the device holds.
        number: of these images.
        batch: pairs that are made at once.
        times: batches that are timed.
    """
    recipe, shape = recipes.create(augment, side), (held, held, 3)
    images = jax.random.bits(jax.random.key(0), (number, held * held * 3), jnp.uint8)
    epoch = jnp.zeros(batch, jnp.int32)

    @jax.jit
    def make(images: jax.Array, index: jax.Array) -> tuple[jax.Array, jax.Array]:
        return device_views.make_two_views(images, shape, index, epoch, 0, recipe)

    index, began = jnp.arange(batch, dtype=jnp.int32) % number, time.perf_counter()
    jax.block_until_ready(make(images, index))
    compiled = time.perf_counter() - began
    seconds = machine.median_seconds(lambda: jax.block_until_ready(make(images, index)), times)
    tell(
        what="views",
        of=f"{augment}, {side} px of {held} px",
        batch=batch,
        seconds=seconds,
        pairs_a_second=batch / seconds,
        seconds_until_first=compiled,
    )


def main() -> None:
    """Make the views of all forms that the command names."""
    xla_flags.set_up()
    asked = given()
    require_accelerator(asked["small"])
    for form in asked["forms"]:
        tell_pairs(**form, times=asked["times"])


if __name__ == "__main__":
    main()
