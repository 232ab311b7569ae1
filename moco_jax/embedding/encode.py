"""Encodes a source of images to rows of a features file, and describes the encoder."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from moco_jax.base import digests, files
from moco_jax.base.errors import UserError
from moco_jax.base.text import to_line
from moco_jax.data.configured import recipe_of
from moco_jax.data.sources import Source, refusals
from moco_jax.embedding.table import Rows
from moco_jax.evaluation import features
from moco_jax.inference import trained_encoder
from moco_jax.parallel import mesh as mesh_lib

# Settings that decide how an image is shown to the encoder; the features file keeps them.
SHOWN: tuple[str, ...] = ("image_size", "augment", "mean", "std", "channels", "white")
SHOWN += ("background", "exif_rotation", "max_pixels")
KINDS = ("backbone", "output")


@dataclasses.dataclass(frozen=True)
class Embedder:
    """An encoder that is shown images as evaluation shows them, in float32.

    Attributes:
        trained: the encoder and its settings.
        kind: 'backbone' for pooled features, 'output' for those after the head.
        mesh: the devices.
        hosts: how many hosts share the images, each with a mesh like this one.
    """

    trained: trained_encoder.TrainedEncoder
    kind: str
    mesh: Mesh
    hosts: int = 1

    def __post_init__(self) -> None:
        if self.kind == "output" and "head" not in self.trained.variables["params"]:
            raise UserError(
                "features='output' is of a head, which these weights lack; 'backbone' works"
            )

    def facts(self, place: str, which: str) -> dict[str, Any]:
        """Return what tells this encoder from any other: place, which one, weights, settings."""
        config = self.trained.config
        named = {
            "place": str(files.absolute(place)),
            "which": which,
            "step": self.trained.step,
            "features": self.kind,
            "arch": config.arch,
            "weights_sha256": digests.of_tree(self.trained.variables),
        }
        shown = {key: config[key] for key in SHOWN}
        return named | {k: list(v) if isinstance(v, tuple) else v for k, v in shown.items()}

    @functools.cached_property
    def encode(self) -> Callable[[jax.Array], jax.Array]:
        """A function from uint8 images `[B, S, S, C]` to features `[B, D]`, compiled once."""
        config = self.trained.config
        encode = features.make_encode(
            self.trained.encoder,
            self.kind,
            tuple(config.mean),
            tuple(config.std),
            np.dtype("float32"),
            self.mesh,
        )
        variables = jax.device_put(self.trained.variables, mesh_lib.replicated(self.mesh))
        return lambda images: encode(variables, images)

    def a_device(self, images: int) -> int:
        """Return how many of so many `images` each device is given at once.

        However many hosts share the images it is the same, and so is an image's place among those
        of its device if parts begin at multiples of it: its features are then equal to the bit.
        """
        devices = self.mesh.size * self.hosts
        return -(-min(self.trained.config.eval_batch_size, images) // devices)

    def stream(
        self, source: Source, part: range | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield features float32 `[n, D]` and places int64 `[n]` of the images, in order.

        Damaged images are left out. `part`: which images; None for all.
        """
        config = self.trained.config
        yield from features.stream(
            source,
            recipe_of(config),
            np.asarray(range(len(source)) if part is None else part, np.int64),
            self.a_device(len(source)) * self.mesh.size,
            config.workers,
            self.mesh,
            self.encode,
        )


class Damaged:
    """Collects images that could not be decoded, by the gaps that they leave."""

    def __init__(self, source: Source, part: range | None = None):
        """Watch `source`, or a `part` of it, which is gone through in order.

        `names` are spelt as the table spells those of the other images.
        """
        self.source = source
        self.part = range(len(source)) if part is None else part
        self.next = self.part.start
        self.names: list[str] = []
        self.first = ""

    def before(self, indices: np.ndarray) -> None:
        """Note what is missing up to and among `indices`, int64 `[n]`, ascending."""
        if not len(indices):
            return
        end = int(indices[-1]) + 1
        missing = np.setdiff1d(np.arange(self.next, end), indices)
        self.next = end
        if len(missing) and not self.first:
            first = int(missing[0])
            reason = refusals.why(self.source, first)
            self.first = f"{self.source.name(first)}{f' ({reason})' if reason else ''}"
        self.names += map(to_line, self.source.names(missing))

    def rest(self) -> None:
        """Note what is missing after the last images."""
        self.before(np.asarray([self.part.stop]))


def labels_of(source: Source, indices: np.ndarray) -> np.ndarray | None:
    """Return the classes int64 `[n]` of images, -1 for one without; None if no image has one."""
    try:
        labels = source.labels(indices)
    except UserError:
        if len(indices) == 1:
            return np.asarray([-1])
        labels = np.concatenate([labels_of(source, one) for one in indices[:, None]])
    return None if labels is None else np.asarray(labels, np.int64)


def part_rows(embedder: Embedder, source: Source, damaged: Damaged) -> Iterator[Rows]:
    """Encode the images that `damaged` watches, a batch at a time; it notes those left out."""
    for block, indices in embedder.stream(source, damaged.part):
        damaged.before(indices)
        if len(indices):
            yield Rows(block, source.names(indices), indices, labels_of(source, indices))
    damaged.rest()


def rows(embedder: Embedder, source: Source, damaged: Damaged) -> Iterator[Rows]:
    """Encode all images of `source` as `part_rows` does.

    Raises:
        UserError: not one can be decoded.
    """
    yield from require_some(part_rows(embedder, source, damaged), source, damaged)


def require_some(made: Iterable[Rows], source: Source, damaged: Damaged) -> Iterator[Rows]:
    """Yield what is `made` of `source`; raises UserError at its end where it was nothing."""
    count = 0
    for some in made:
        count += 1
        yield some
    if not count:
        raise refusals.none_is_sound(len(source), damaged.first)
