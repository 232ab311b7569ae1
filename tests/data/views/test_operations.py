"""The table of stages: places of random numbers, what each stage says, and how hosts group them."""

import dataclasses
import subprocess
import sys
from typing import ClassVar

import pytest

from moco_jax.data.views import augment, recipes
from moco_jax.data.views.operations import (
    TABLE,
    Blur,
    Crop,
    Flip,
    Grayscale,
    Operation,
    Rotate,
    Solarize,
    VerticalFlip,
)


def test_random_numbers_lie_where_they_lay_in_earlier_runs():
    """A run that goes on after an update must see the views that it would have seen."""
    places = {stage.name: places for stage, places in recipes.PLACES.items()}
    assert places == {
        "crop": (0, 32),
        "color": (22, 54),
        "grayscale": (28, 60),
        "blur": (29, 61),
        "flip": (31, 63),
        "solarize": (64, 65),
        "vertical_flip": (66, 67),
        "rotate": (68, 70),
    }
    assert recipes.UNIFORMS == 72


def test_each_random_number_belongs_to_one_stage_and_view():
    used = [
        begin + n
        for stage, places in recipes.PLACES.items()
        for begin in places
        for n in range(stage.uniforms)
    ]
    assert sorted(used) == list(range(recipes.UNIFORMS))


@pytest.mark.parametrize("stage", recipes.STAGES, ids=lambda stage: stage.name)
def test_a_stage_draws_what_it_says(stage):
    """An operation draws whether it is applied, under its own name; no settings share a name."""
    if issubclass(stage, Operation):
        assert next(iter(stage.fields.items())) == (stage.name, ("bool",))
        assert stage.probability_setting().endswith("_probability")
    own = {field.name for field in dataclasses.fields(stage)}
    others = [f.name for s in recipes.STAGES if s is not stage for f in dataclasses.fields(s)]
    assert not own & {*others, *recipes.Recipe.__dataclass_fields__}
    assert [s for row in TABLE for s in row].count(stage) == 1


def test_settings_are_read_from_a_recipe_by_name():
    recipe = recipes.Recipe(32, Crop(), (Blur(blur_sigma=(1.0, 3.0)), Flip(0.25)))
    assert (recipe.blur_sigma, recipe.flip_probability) == ((1.0, 3.0), 0.25)
    assert recipe.stage(Solarize) == Solarize()
    with pytest.raises(AttributeError, match="no stage of the recipe has the setting 'jitter'"):
        _ = recipe.jitter


@dataclasses.dataclass(frozen=True)
class Shift(Blur):
    """An operation that a flip does not commute with."""

    symmetric: ClassVar = False
    own_programs: ClassVar = False


def programs(*operations):
    recipe = recipes.Recipe(32, Crop(), operations)
    return [[o.name for o in group] for group in augment._programs(recipe)]


def test_operations_in_a_row_are_one_program():
    """A blur compiles its passes itself; a flip joins the first program where it may."""
    assert programs() == []
    assert programs(*recipes.RECIPES["v2"].operations) == [["color", "grayscale", "flip"], ["blur"]]
    assert programs(Blur(), Solarize(), Flip()) == [["flip"], ["blur"], ["solarize"]]
    turned = programs(Grayscale(), Blur(), Flip(), VerticalFlip(), Rotate())
    assert turned == [["grayscale"], ["blur"], ["flip", "vertical_flip", "rotate"]]
    assert programs(Shift(), Flip(), Solarize()) == [["blur", "flip", "solarize"]]


def test_devices_make_views_without_tensorflow():
    code = """
import sys
sys.modules["tensorflow"] = None
import jax
from moco_jax.data.views import device_views, recipes
images = jax.ShapeDtypeStruct((4, 20 * 20 * 3), "uint8")
number = jax.ShapeDtypeStruct((2,), "int32")
def make(images, index, epoch):
    recipe = recipes.create("v3", 16)
    return device_views.make_two_views(images, (20, 20, 3), index, epoch, 3, recipe)
print([view.shape for view in jax.eval_shape(make, images, number, number)])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[(2, 16, 16, 3), (2, 16, 16, 3)]\n"
