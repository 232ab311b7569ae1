"""Draws the parameters of one view: the same lines for TensorFlow on hosts and JAX on devices."""

from typing import Any

from moco_jax.data.views.arrays import Arrays
from moco_jax.data.views.recipes import PLACES, STAGES, Recipe, View


def draw_view(
    arrays: Arrays, uniforms: Any, height: Any, width: Any, recipe: Recipe, number: int
) -> View:
    """Draw the parameters of one view of an image of this height and width.

    Args:
        arrays: the functions to compute with.
        uniforms: float32 `[UNIFORMS]` in 0..1, 1 excluded: the example's random numbers.
        height, width: of the image, int32.
        recipe: the view to draw.
        number: 0 for the example's query view, 1 for its key view.
    """
    drawn: dict[str, Any] = {}
    for kind in STAGES:
        begin = PLACES[kind][number]
        own = uniforms[begin : begin + kind.uniforms]
        drawn |= recipe.stage(kind).draw(arrays, own, number, (height, width))
    return View(**drawn)


def draw_pair(
    arrays: Arrays, uniforms: Any, height: Any, width: Any, recipe: Recipe
) -> tuple[View, View]:
    """Draw the parameters of query and key view; see `draw_view`."""
    query, key = (draw_view(arrays, uniforms, height, width, recipe, number) for number in (0, 1))
    return query, key
