"""Recipes of views, and the parameters drawn for one view.

A recipe names the stages of its views and their settings. `drawing.py` draws the parameters;
`augment.py` applies the stages on the host, `device_views.py` on the devices.
"""

import collections
import dataclasses
from typing import TYPE_CHECKING, Any, TypeAlias

from moco_jax.data.views import strengths as replacing
from moco_jax.data.views.operations import (
    TABLE,
    Blur,
    Crop,
    Flip,
    Grayscale,
    Jitter,
    Operation,
    Solarize,
    Stage,
)
from moco_jax.data.views.strengths import Strengths


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How views are drawn: a crop, and the operations after it, in order.

    The settings of its stages can be read from it by name, as `recipe.blur_sigma`.

    Attributes:
        image_size: side of a view in pixels.
        crop: the crop.
        operations: what follows the crop.
        evaluation_resize: length of the shorter side before the centre crop; 0: no resize beyond
            the crop's need.
    """

    image_size: int
    crop: Crop
    operations: tuple[Operation, ...] = ()
    evaluation_resize: int = 0

    @property
    def stages(self) -> tuple[str, ...]:
        """Return the names of the stages in order."""
        return (self.crop.name, *(operation.name for operation in self.operations))

    def stage(self, kind: type[Stage]) -> Stage:
        """Return the stage of this `kind`; with its default settings where the recipe has none."""
        return next((s for s in (self.crop, *self.operations) if isinstance(s, kind)), kind())

    def __getattr__(self, setting: str) -> Any:
        """Return a setting of one of the stages."""
        if not setting.startswith("_"):  # copy and pickle ask for such before there are stages
            for stage in (self.crop, *self.operations):
                if setting in (field.name for field in dataclasses.fields(stage)):
                    return getattr(stage, setting)
        raise AttributeError(f"no stage of the recipe has the setting {setting!r}")


_V2 = Jitter((0.4, 0.4, 0.4, 0.1), 0.8)
RECIPES: dict[str, Recipe] = {
    "v1": Recipe(224, Crop(), (Grayscale(), Jitter((0.4, 0.4, 0.4, 0.4)), Flip())),
    "v2": Recipe(224, Crop(), (_V2, Grayscale(), Blur(), Flip())),
    "v3": Recipe(  # BYOL's
        224,
        Crop((0.08, 1.0)),  # the authors' default; their ResNet recipes say 0.2
        (
            Jitter((0.4, 0.4, 0.2, 0.1), 0.8),
            Grayscale(),
            Blur((1.0, 0.1)),
            Solarize((0.0, 0.2)),
            Flip(),
        ),
    ),
    "cifar": Recipe(32, Crop((0.08, 1.0)), (Flip(), _V2, Grayscale())),
    "digits": Recipe(32, Crop((0.3, 1.0))),
    "linear": Recipe(224, Crop((0.08, 1.0)), (Flip(),)),  # of classifiers
}


def create(
    name: str,
    image_size: int,
    crop_min: float | None = None,
    channels: int = 3,
    strengths: Strengths | None = None,
) -> Recipe:
    """Create the recipe `name` of views.

    ImageNet recipes are evaluated on the centre of images resized by 256 / 224 of the view's side.

    Args:
        name: one of `RECIPES`.
        image_size: side of a view in pixels.
        crop_min: replaces its smallest crop.
        channels: with other than three its colour operations are left out.
        strengths: replace its settings of the same names, see `strengths.replaced`.

    Raises:
        UserError: a strength that would change nothing.
    """
    if name not in RECIPES:
        raise ValueError(f"augment={name!r} is unknown; use one of {', '.join(RECIPES)}")
    base, resized = RECIPES[name], name in ("v1", "v2", "v3", "linear")
    least, most = base.crop.crop_scale
    strengths = strengths or {}
    ratio = strengths.get("crop_ratio", base.crop.crop_ratio)
    kept = tuple(o for o in base.operations if channels == 3 or not o.colours)
    return dataclasses.replace(
        base,
        image_size=image_size,
        crop=Crop((crop_min or least, most), (ratio[0], ratio[1])),
        operations=replacing.replaced(kept, strengths, name, channels),
        evaluation_resize=round(image_size * 256 / 224) if resized else image_size,
    )


def without_colours(name: str, channels: int, strengths: Strengths | None = None) -> str:
    """Say in a sentence that `create` leaves out colour operations; '' where it does not."""
    if channels == 3 or not any(o.colours for o in RECIPES[name].operations):
        return ""
    kept = create(name, 1, channels=channels, strengths=strengths).stages
    left = " and ".join(filter(None, (", ".join(kept[:-1]), kept[-1])))
    return (
        f"channels={channels}: the colour operations of augment={name!r} are left out; {left}"
        " remain"
    )


def described(recipe: Recipe) -> str:
    """Describe in a line what is drawn for views: each stage, how often, and its other settings.

    Where an operation is not as frequent in both views, the query view comes first.
    """

    def shown(value: Any) -> str:
        if isinstance(value, tuple):
            return f"({', '.join(map(shown, value))})"
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    def settings(stage: Stage, told: str) -> str:
        """List the settings of `stage` but that which is `told` before."""
        names = [field.name for field in dataclasses.fields(stage) if field.name != told]
        return "".join(f" {name}={shown(getattr(stage, name))}" for name in names)

    def operation(stage: Operation) -> str:
        shares = [f"{100 * stage.chance(number):.3g}" for number in (0, 1)]
        often = shares[0] if shares[0] == shares[1] else " / ".join(shares)
        return f"{stage.name} {often} %{settings(stage, stage.probability_setting())}"

    least, most = (100 * share for share in recipe.crop.crop_scale)
    crop = f"crop {least:.3g} to {most:.3g} %{settings(recipe.crop, 'crop_scale')}"
    return "; ".join([crop, *map(operation, recipe.operations)])


STAGES = tuple(stage for row in TABLE for stage in row)
COLOURS = tuple(stage.name for stage in STAGES if stage.colours)  # need red, green and blue
_FIELDS = {name: form for stage in STAGES for name, form in stage.fields.items()}
# Dtype and shape of each field of one View, in their order.
FIELDS: tuple[tuple, ...] = tuple(_FIELDS.values())

if TYPE_CHECKING:
    View: TypeAlias = Any  # a type checker cannot read fields from the table
else:
    View = collections.namedtuple("View", _FIELDS)
    View.__doc__ = """What all stages drew for one view, or for a batch of views `[B, ...]`.

    Its fields are those that the stages name; a recipe uses those of its own stages.
    """


def _places() -> tuple[dict[type[Stage], tuple[int, int]], int]:
    """Return where a stage's random numbers begin for query and key view, and how many are all."""
    places, begin = {}, 0
    for row in TABLE:
        each = sum(stage.uniforms for stage in row)
        for stage in row:
            places[stage] = begin, begin + each
            begin += stage.uniforms
        begin += each
    return places, begin


PLACES, UNIFORMS = _places()  # among the random numbers of one example
