"""Makes views in a jitted step, without TensorFlow.

`make_two_views` makes whole ones, of images that live on the devices; `finish` does what follows
crops that the host made. Parameters are those that hosts draw, from the same random bits.
"""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from moco_jax.data.views import arrays, philox
from moco_jax.data.views.drawing import draw_pair
from moco_jax.data.views.operations import crop
from moco_jax.data.views.recipes import UNIFORMS, Recipe, View
from moco_jax.parallel.mesh import AXIS

Side = int | jax.Array  # of an image, in pixels


def draw_two_views(
    seed: int, epoch: jax.Array, index: jax.Array, height: Side, width: Side, recipe: Recipe
) -> tuple[View, View]:
    """Draw the parameters of query and key views, `[B, ...]` each.

    They are for the examples `index` in `epoch`, int32 `[B]` each. `height` and `width` are
    those of all images, or int32 `[B]`.
    """
    # The second seed of TensorFlow is epoch * 2**31 + index, in 64 bits.
    upper, lower = epoch.astype(jnp.uint32), index.astype(jnp.uint32)
    drawn = philox.uniforms(seed, upper >> 1, (upper << 31) | lower, UNIFORMS)

    def draw(uniforms: jax.Array, height: jax.Array, width: jax.Array) -> tuple[View, View]:
        return draw_pair(arrays.of_jax(), uniforms, height, width, recipe)

    sides = (
        jnp.broadcast_to(jnp.asarray(side, jnp.int32), index.shape) for side in (height, width)
    )
    return jax.vmap(draw)(drawn, *sides)


def _finish(image: jax.Array, view: View, recipe: Recipe) -> jax.Array:
    planes = image.transpose(2, 0, 1)
    for operation in recipe.operations:
        changed = operation.on_device(planes, view)
        planes = jnp.where(getattr(view, operation.name), changed, planes)
    return planes.transpose(1, 2, 0)


def finish(images: jax.Array, views: View, recipe: Recipe) -> jax.Array:
    """Apply all operations of `recipe` but the crop to crops uint8 `[B, S, S, C]`.

    `views`: drawn by `draw_view`, every field with a leading axis `[B]`.
    """
    return jax.vmap(lambda image, view: _finish(image, view, recipe))(images, views)


def take_rows(images: jax.Array, index: jax.Array, mesh: Mesh | None) -> jax.Array:
    """Take the rows `index` int32 `[B]` of `images` uint8 `[N, P]`: uint8 `[B, P]`.

    With a `mesh` both are divided over its devices by their first axis. Each device is told the
    whole batch's indices, takes those rows that lie with it and zeros for the others, and a
    reduce-scatter hands every device the sums of its own part of the batch: `B * P` bytes travel,
    however many images there are, and the sums are exact, as one device alone adds to each row.
    """
    if mesh is None:
        return images.at[index].get(mode="promise_in_bounds")

    def own_part(held: jax.Array, asked: jax.Array) -> jax.Array:
        every = jax.lax.all_gather(asked, AXIS, tiled=True)
        place = every - jax.lax.axis_index(AXIS) * len(held)
        here = (place >= 0) & (place < len(held))
        rows = held.at[jnp.where(here, place, 0)].get(mode="promise_in_bounds")
        return jax.lax.psum_scatter(jnp.where(here[:, None], rows, 0), AXIS, tiled=True)

    divided = P(AXIS)
    take = jax.shard_map(own_part, mesh=mesh, in_specs=(divided, divided), out_specs=divided)
    return take(images, index)


def make_two_views(
    images: jax.Array,
    shape: tuple[int, int, int],
    index: jax.Array,
    epoch: jax.Array,
    seed: int,
    recipe: Recipe,
    mesh: Mesh | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Make query and key views, uint8 `[B, S, S, C]` each, of examples `index` in `epoch`.

    Args:
        images: uint8 `[N, H * W * C]`, all images, each in one row: with more axes a TPU would
            hold the first innermost, and turn the whole array round at every step.
        shape: H, W and C.
        index, epoch: int32 `[B]`, of each example.
        seed: of the run.
        recipe: the views to draw.
        mesh: the devices that share the images, see `take_rows`; None where each has all.
    """
    chosen = take_rows(images, index, mesh).reshape(-1, *shape)
    drawn = draw_two_views(seed, epoch, index, *shape[:2], recipe=recipe)

    def view(parameters: View) -> jax.Array:
        crops = jax.vmap(lambda image, box: crop.on_device(image, box, recipe.image_size))
        return finish(crops(chosen, parameters.box), parameters, recipe)

    return view(drawn[0]), view(drawn[1])
