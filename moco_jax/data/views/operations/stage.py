"""The interface of a stage of views: what it draws, and how it is applied.

A stage is a frozen dataclass. Its fields are its settings in a recipe, such as probabilities; its
class attributes are the same in all recipes.
"""

import dataclasses
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import jax

from moco_jax.data.views.arrays import Arrays

if TYPE_CHECKING:  # views made on devices do without TensorFlow
    import tensorflow as tf


# How often an operation is applied: in both views, or in the query view and in the key view.
Probability = float | tuple[float, float]


def between(low: Any, high: Any, uniform: Any) -> Any:
    """Stretch random numbers `uniform` in 0..1 to `low`..`high`."""
    return low + (high - low) * uniform


@dataclasses.dataclass(frozen=True)
class Stage(ABC):
    """A stage of views: its settings, and what it draws for one view.

    Attributes:
        name: what recipes and messages call it.
        fields: the parameters it draws, each with dtype and lengths of its axes.
        uniforms: random numbers that it draws them from.
        colours: whether it needs red, green and blue.
    """

    name: ClassVar[str]
    fields: ClassVar[dict[str, tuple]]
    uniforms: ClassVar[int]
    colours: ClassVar[bool] = False

    @abstractmethod
    def draw(
        self, arrays: Arrays, uniforms: Any, number: int, size: tuple[Any, Any]
    ) -> dict[str, Any]:
        """Draw `fields` for one view, with the same bits on host and devices.

        Args:
            arrays: the functions to compute with.
            uniforms: float32 `[self.uniforms]` in 0..1, 1 excluded.
            number: 0 for a query view, 1 for a key view.
            size: height and width of the image, int32.
        """


class Operation(Stage):
    """A stage after the crop, which changes pixels where the field of its own name is true.

    One of its settings ends in `_probability`, of the type `Probability`.

    Attributes:
        pixels: how the host's form takes pixels and returns them: 'planes' uint8 `[C, W, H]`,
            'packed' int32 `[W, H]` (see `host_pixels`), or 'either' of them.
        own_programs: whether the host's form compiles its parts itself. All others in a row
            become one XLA program.
        symmetric: whether it does the same before a horizontal flip as after it. If all do, the
            host flips where that costs nothing.
    """

    pixels: ClassVar[Literal["planes", "packed", "either"]] = "planes"
    own_programs: ClassVar[bool] = False
    symmetric: ClassVar[bool] = False

    @classmethod
    def probability_setting(cls) -> str:
        """Return the name of the setting that says how often the operation is applied."""
        names = (field.name for field in dataclasses.fields(cls))
        return next(name for name in names if name.endswith("_probability"))

    def chance(self, number: int) -> float:
        """Return how often view `number` (0: query, 1: key) is changed, 0 to 1."""
        set_to: Probability = getattr(self, self.probability_setting())
        return set_to[number] if isinstance(set_to, tuple) else set_to

    @property
    def idle(self) -> bool:
        """Whether the settings leave every view as it is."""
        return not any(self.chance(number) for number in (0, 1))

    @abstractmethod
    def on_host(self, x: "tf.Tensor", view: Any) -> "tf.Tensor":
        """Change the pixels `x` of one view in a TensorFlow graph, columns before rows.

        `view` holds what was drawn, of all stages.
        """

    @abstractmethod
    def on_device(self, planes: jax.Array, view: Any) -> jax.Array:
        """Change uint8 `[C, H, W]` of one view in a jitted step; see `on_host`."""
