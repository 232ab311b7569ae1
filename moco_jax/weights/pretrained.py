"""The common form of all files of weights: the encoders of one pretraining, and its queue."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moco_jax import encoders
from moco_jax.encoders.vit import ViT

Variables = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """Encoders with their weights, as read from a file or a run.

    Attributes:
        options: arguments of `encoders.create`, `name` among them; `head` only where the weights
            of one are there.
        query: `{'params', 'batch_stats'}` of NumPy arrays, each with the entry 'backbone', and
            'head' and 'predictor' where there are such weights.
        key: of the momentum encoder, which has no predictor; None: there is none.
        queue: keys `[K, dim]`, the oldest first; None: there is none.
        image_size: side in pixels of the images that it was trained on; 224 where nothing says
            it.
        channels: of these images.
        left_out: names of entries of a file that have no place here.
        remarks: sentences on what was read otherwise than it stands in the file, or is not known
            of it.
        preprocessing: what is known of how its images are made: `image_size` where it is no
            guess, `mean` and `std` per channel of images scaled to 0..1, and `resize`, the
            length of the shorter side before the centre crop.
    """

    options: dict[str, Any]
    query: Variables
    key: Variables | None = None
    queue: np.ndarray | None = None
    image_size: int = 224
    channels: int = 3
    left_out: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    preprocessing: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def is_vit(self) -> bool:
        """Whether the backbone is a ViT; otherwise it is a ResNet."""
        return isinstance(self.encoder.backbone, ViT)

    @property
    def encoder(self) -> encoders.Encoder:
        """The query encoder's module, with a head even where there are no weights for one."""
        return encoders.create(**self.options)

    def chosen(self, which: str) -> Variables | None:
        """Return the variables of the 'query' or 'key' encoder."""
        return self.query if which == "query" else self.key


def template(options: dict[str, Any], image_size: int, channels: int = 3) -> Variables:
    """Return shapes and dtypes of the variables of the encoder with these `options`.

    They are as `jax.eval_shape` gives them.
    """
    encoder = encoders.create(**options)
    # Not an array of zeros: a file decides its size, and could ask for any amount of memory.
    images = jax.ShapeDtypeStruct((1, image_size, image_size, channels), jnp.float32)
    init = partial(encoder.init, method=encoder.predict)
    return dict(jax.eval_shape(init, jax.random.key(0), images))


def part(variables: Variables, name: str) -> Variables:
    """Return the variables of one part ('backbone', 'head', 'predictor'); no empty collections."""
    parts = {collection: tree.get(name) for collection, tree in variables.items()}
    return {collection: tree for collection, tree in parts.items() if tree}


def joined(**parts: Variables) -> Variables:
    """Join parts' variables to `{'params', 'batch_stats'}`, the opposite of `part`."""
    return {
        collection: {name: tree[collection] for name, tree in parts.items() if tree.get(collection)}
        for collection in ("params", "batch_stats")
    }
