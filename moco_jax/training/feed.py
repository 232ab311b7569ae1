"""Batches for the train step: made on the host, and brought to the devices ahead of the step."""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from moco_jax.base.console import Console, Counter
from moco_jax.data import resident
from moco_jax.data.damaged import DamagedImages
from moco_jax.method.step import Batch
from moco_jax.parallel import mesh
from moco_jax.training.assembly import Program, RunSetup

Rows = dict[str, Any]
AHEAD = 2  # batches under way to the devices while a step runs


class Fed(NamedTuple):
    """What is fed to one step.

    Attributes:
        batch: for the train step.
        classes: for an online probe, of the batch's images: int32 `[B]`, divided over the devices;
            None without a probe.
    """

    batch: Batch
    classes: jax.Array | None


def open_batches(
    config: ConfigDict,
    setup: RunSetup,
    examples_seen: int,
    damaged: DamagedImages,
    console: Console,
) -> tuple[Generator[Rows, None, None], jax.Array | None]:
    """Open the stream of batches on this host, and load the images that devices hold, if any.

    Args:
        config: the settings.
        setup: of the run.
        examples_seen: examples drawn before the first batch.
        damaged: told of each image that cannot be decoded.
        console: shows how far loading is.

    Returns:
        this host's rows of each batch, without end, and the resident images, divided over all
        devices (`resident.load`); None where the devices hold no images.
    """
    program = setup.program
    common: dict[str, Any] = {
        "seed": config.seed,
        "batch_size": config.batch_size,
        "rows": mesh.local_rows(program.mesh, config.batch_size),
        "examples_seen": examples_seen,
    }
    if setup.resident_shape is None:
        from moco_jax.data import pipeline  # tf.data, which resident images do without

        batches = pipeline.train_batches(
            setup.source,
            setup.recipe,
            workers=config.workers,
            damaged=damaged,
            crop_only=config.augment_on == "device",
            scaled_decoding=config.scaled_decoding,
            **common,
        )
        return batches, None
    here = resident.count_here(program.mesh, len(setup.source))
    progress = Counter(console, "loading images: {done} of {total}", here)
    images, stand_in = resident.load(
        program.mesh, setup.source, setup.resident_shape, config.workers, damaged, progress
    )
    return resident.train_batches(stand_in, **common), images


def device_batches(
    host_batches: Iterator[Rows],
    program: Program,
    images: jax.Array | None = None,
    classes_of: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Iterator[Fed]:
    """Yield the batches on the devices, `AHEAD` of them under way.

    Args:
        host_batches: this host's rows of each.
        program: what is fed.
        images: resident ones.
        classes_of: from indices int `[n]` to classes int32 `[n]`, for an online probe.
    """
    queue: deque[Fed] = deque()
    for rows in host_batches:
        # By index, as a damaged image has a stand-in of another class.
        classes = None if classes_of is None else classes_of(rows["index"])
        there, classes = mesh.to_devices(program.mesh, (rows, classes))
        queue.append(Fed(Batch(**there, images=images), classes))
        if len(queue) > AHEAD:
            yield queue.popleft()
