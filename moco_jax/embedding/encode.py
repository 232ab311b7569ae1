"""Encodes a source of images to rows of a features file, and describes the encoder."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from moco_jax.base import digests, files
from moco_jax.base.errors import UserError
from moco_jax.base.text import to_line
from moco_jax.data.configured import recipe_of
from moco_jax.data.sources import Source
from moco_jax.data.sources.refusals import why
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
    """

    trained: trained_encoder.TrainedEncoder
    kind: str
    mesh: Mesh

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

    def stream(self, source: Source) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield features float32 `[n, D]` and places int64 `[n]` of the images, in order.

        Damaged images are left out.
        """
        config, devices = self.trained.config, self.mesh.size
        batch = -(-min(config.eval_batch_size, len(source)) // devices) * devices
        encode = features.make_encode(
            self.trained.encoder,
            self.kind,
            tuple(config.mean),
            tuple(config.std),
            np.dtype("float32"),
            self.mesh,
        )
        variables = jax.device_put(self.trained.variables, mesh_lib.replicated(self.mesh))
        yield from features.stream(
            source,
            recipe_of(config),
            np.arange(len(source)),
            batch,
            config.workers,
            self.mesh,
            lambda images: encode(variables, images),
        )


class Damaged:
    """Collects images that could not be decoded, by the gaps that they leave."""

    def __init__(self, source: Source):
        """Watch `source`, which is gone through in order.

        `names` are spelt as the table spells those of the other images.
        """
        self.source, self.next = source, 0
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
            reason = why(self.source, first)
            self.first = f"{self.source.name(first)}{f' ({reason})' if reason else ''}"
        self.names += map(to_line, self.source.names(missing))

    def rest(self) -> None:
        """Note what is missing after the last images."""
        self.before(np.asarray([len(self.source)]))


def labels_of(source: Source, indices: np.ndarray) -> np.ndarray | None:
    """Return the classes int64 `[n]` of images, -1 for one without; None if no image has one."""
    try:
        labels = source.labels(indices)
    except UserError:
        if len(indices) == 1:
            return np.asarray([-1])
        labels = np.concatenate([labels_of(source, one) for one in indices[:, None]])
    return None if labels is None else np.asarray(labels, np.int64)


def rows(embedder: Embedder, source: Source, damaged: Damaged) -> Iterator[Rows]:
    """Encode all images of `source`, a batch at a time; `damaged` notes those left out.

    Raises:
        UserError: not one can be decoded.
    """
    count = 0
    for block, indices in embedder.stream(source):
        damaged.before(indices)
        count += len(indices)
        if len(indices):
            yield Rows(block, source.names(indices), indices, labels_of(source, indices))
    damaged.rest()
    if not count:
        raise UserError(
            f"none of the {len(source):,} images can be decoded; {damaged.first} is one of them"
        )
