"""Rates: view pairs that this host makes, steps that devices take, and whether they match."""

import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from moco_jax.base.console import duration
from moco_jax.base.findings import NOTE, OK, WARNING, Finding
from moco_jax.data import order, resident
from moco_jax.data.configured import recipe_of
from moco_jax.data.damaged import DamagedImages
from moco_jax.data.sources import Source
from moco_jax.monitoring.diagnosis.loss_rules import MUCH_WAITING
from moco_jax.parallel import hosts, mesh
from moco_jax.training.assembly import Program

SECONDS = 8.0  # of a window, see `pairs_per_second`
WINDOWS = 6
STEADY = 1.1
READ_SECONDS = 2.0
NUMBERS_SECONDS = 0.2
ROWS = 64  # of a batch are made, as one of several hosts would: large batches would take too long
READS = 64
STEP_SECONDS = 10.0
STEPS = 10
LONG = 4 * 3600.0  # seconds of a run on a CPU
MARGIN = 1.1  # a host has more to do than views


def some_epoch(examples: int, batch_size: int) -> int:
    """Return the examples seen at the start of an epoch far off, another at each call.

    Its first images are in no disk cache.
    """
    return time.time_ns() % 10_000 * order.steps_per_epoch(examples, batch_size) * batch_size


def pairs_per_second(batches: Iterator[dict[str, Any]], seconds: float) -> float:
    """Measure how many view pairs a second `batches` yield, once they do so steadily.

    Of windows of at least `seconds` the first is left out, and the last counts: a window that is no
    faster than the one before by more than a tenth. While it is, programs are still compiled for
    the shapes of the images; after `WINDOWS` the measure ends in any case.
    """
    next(batches)
    rates: list[float] = []
    while len(rates) < WINDOWS:
        count, began = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - began) < seconds or not count:
            count += len(next(batches)["index"])
        rates.append(count / elapsed)
        if len(rates) > 1 and rates[-1] < STEADY * rates[-2]:
            break
    return rates[-1]


def source_pairs_per_second(config: ConfigDict, source: Source, batch_size: int) -> float:
    """Measure how many view pairs a second this host makes of the images in `source`."""
    from moco_jax.data import pipeline  # tf.data, which only such views need

    batches = pipeline.train_batches(
        source,
        recipe_of(config),
        seed=config.seed,
        batch_size=batch_size,
        rows=np.arange(min(ROWS, batch_size)),
        examples_seen=some_epoch(len(source), batch_size),
        workers=config.workers,
        damaged=DamagedImages(len(source)),
        crop_only=config.augment_on == "device",
        scaled_decoding=config.scaled_decoding,
    )
    return pairs_per_second(batches, SECONDS)


def numbers_per_second(examples: int, batch_size: int, rows: np.ndarray, seed: int) -> float:
    """Measure how many image indices a second this host yields, its `rows` of each batch.

    Nothing else is made on the host where devices make views of the images that they hold.
    """
    batches = resident.train_batches(
        np.arange(examples),
        seed=seed,
        batch_size=batch_size,
        rows=rows,
        examples_seen=some_epoch(examples, batch_size),
    )
    return pairs_per_second(batches, min(SECONDS, NUMBERS_SECONDS))


def reads_per_second(source: Source, seconds: float, seed: int) -> float:
    """Measure how many records a second `source` reads at random places, without decoding."""
    rng = np.random.default_rng(seed)
    count, began = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds or not count:
        source.read(rng.integers(len(source), size=READS))
        count += READS
    return count / elapsed


def step_seconds(program: Program, compiled: Callable[..., Any]) -> float:
    """Measure the seconds of one step on random images; resident images are black.

    This is the median of the second to tenth step, or of as many as are done in ten seconds.
    """
    rng, rows = np.random.default_rng(0), mesh.local_rows(program.mesh, len(program.batch.index))

    def some(x: Any) -> np.ndarray:
        return rng.integers(0, 2, (len(rows), *x.shape[1:])).astype(x.dtype)

    resident_images = program.batch.images
    batch = jax.tree.map(some, dataclasses.replace(program.batch, images=None))
    if resident_images is None:
        noise = rng.integers(0, 256, batch.query.shape, np.uint8)
        batch = batch.replace(query=noise, key=noise[::-1])
    batch = mesh.to_devices(program.mesh, batch)
    if resident_images is not None:
        black = jax.jit(
            lambda: jnp.zeros(resident_images.shape, resident_images.dtype),
            out_shardings=resident_images.sharding,
        )
        batch = batch.replace(images=black())
    state = program.initial()
    durations: list[float] = []
    # Process 0 decides for all: hosts that took different numbers of steps would wait for ever.
    while hosts.broadcast(
        not durations or (sum(durations) < STEP_SECONDS and len(durations) < STEPS)
    ):
        began = time.perf_counter()
        state, *_ = jax.block_until_ready(compiled(state, batch))
        durations.append(time.perf_counter() - began)
    return hosts.broadcast(float(np.median(durations[1:] or durations)))


def number(rate: float) -> str:
    """Format `rate` with as many digits as mean something."""
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def feeds(pairs: float, batch_size: int, step: float, shared: bool, remedies: list[str]) -> Finding:
    """Find whether `pairs` a second feed steps of `step` seconds with `batch_size` pairs each.

    Of several hosts each is asked for its own rows of a batch, and `batch_size` is their number.

    `shared`: the devices are this host's own cores; `remedies`: what would make it faster, in
    words.
    """
    needed, making = batch_size / step, batch_size / pairs
    text = (
        f"this host makes {number(pairs)} view pairs a second; steps of {step:.3g} s ask for "
        f"{number(needed)}"
    )
    if shared:
        return Finding(
            NOTE,
            (
                f"{text}, but both share the same cores: a step takes up to {making:.2g} s longer "
                "in a run"
            ),
        )
    waiting = max(1 - step / making, 0)
    if pairs >= MARGIN * needed:
        return Finding(OK, f"{text}: the devices do not wait")
    if waiting <= MUCH_WAITING:
        return Finding(
            NOTE, f"{text}: hardly enough, the devices would wait {waiting:.0%} of the time"
        )
    return Finding(
        WARNING,
        f"{text}: the devices would wait {waiting:.0%} of the time; what helps:",
        tuple(remedies),
    )


@dataclasses.dataclass(frozen=True)
class Input:
    """Properties of a host, its images and settings that decide how fast views are made.

    Attributes:
        workers: the setting.
        cores: of this host.
        folder: whether images are single files.
        side: median length of the images' shorter side, in pixels.
        image_size: side of a view.
        on_device: whether the devices do what follows the crop.
        blurs: whether the recipe blurs.
        scaled: whether large JPEGs are shrunk in decoding.
        could_reside: whether the images seem to be of one size, and fit on a device.
    """

    workers: int
    cores: int
    folder: bool
    side: float
    image_size: int
    on_device: bool
    blurs: bool
    scaled: bool
    could_reside: bool

    @classmethod
    def of(cls, config: ConfigDict, source: Source, side: float, could_reside: bool) -> "Input":
        """Read the properties of this host, of `config` and of `source`; arguments as above."""
        return cls(
            workers=config.workers,
            cores=os.cpu_count() or 1,
            folder=hasattr(source, "files"),
            side=side,
            image_size=config.image_size,
            on_device=config.augment_on == "device",
            blurs="blur" in recipe_of(config).stages,
            scaled=config.scaled_decoding,
            could_reside=could_reside,
        )


def remedies(pairs: float, needed: float, reads: float, made: Input) -> list[str]:
    """List what makes this host faster, most useful first.

    Args:
        pairs: view pairs a second that it makes.
        needed: view pairs a second that the devices take.
        reads: records a second that are read without decoding.
        made: how the pairs are made.
    """
    found = []
    if reads < 1.5 * needed:
        text = f"reading alone gives {reads:,.0f} images a second: put the images on a local disk"
        if made.folder:
            text += (
                ", or pack the folder (python -m moco_jax.pack): a few large files are read faster"
            )
        found.append(text)
    if made.could_reside:
        found.append(
            "--config.augment_on=resident: the images fit on the devices, and views are made there"
        )
    if 0 < made.workers < made.cores:
        found.append(
            f"--config.workers=0: {made.workers} threads make views, and the host has {made.cores} "
            "cores"
        )
    if made.side > 6 * made.image_size and not made.scaled:
        found.append("--config.scaled_decoding=True: JPEGs are shrunk as they are decoded")
    if made.side > 2 * made.image_size:
        shorter = round(made.image_size * 256 / 224)
        found.append(
            f"images whose shorter side is {shorter} instead of {made.side:.0f} pixels (median): "
            f"shrink them once, beforehand (--shorter_side={shorter}, docs/data.md)"
        )
    cores = math.ceil(made.cores * MARGIN * needed / pairs)
    found.append(f"about {cores} cores like these instead of {made.cores}")
    if not made.on_device:
        found.append("--config.augment_on=device: colours and blur are done within the step")
    cheaper = "--config.blur_probability=0 or " if made.blurs else ""
    found.append(
        f"a cheaper recipe, where its effect is acceptable: {cheaper}a smaller image_size than "
        f"{made.image_size}"
    )
    return found


def _seconds(pairs: float, batch_size: int, step: float, shared: bool) -> float:
    """Estimate the seconds from one step to the next."""
    making = batch_size / pairs
    return step + making if shared else max(step, making)


def room(
    pairs: float, batch_size: int, step: float, shared: bool, minutes: float, steps_per_epoch: int
) -> Finding:
    """Find how many epochs so many `minutes` have room for at the speed that was measured."""
    steps = round(60 * minutes / _seconds(pairs, batch_size, step, shared))
    return Finding(
        OK,
        f"minutes={minutes:g} have room for about {steps:,} steps here, "
        f"{steps / steps_per_epoch:.3g} epochs, less what scores take",
    )


def pace(pairs: float, batch_size: int, step: float, shared: bool, total_steps: int) -> Finding:
    """Find how long the whole run takes at the speed that was measured.

    Where that is very long on a CPU, the finding names what takes less.
    """
    seconds = total_steps * _seconds(pairs, batch_size, step, shared)
    text = f"the run's {total_steps:,} steps take about {duration(seconds)} here"
    if shared and seconds > LONG:
        return Finding(
            NOTE,
            f"{text}: a smaller image_size, arch or epochs takes less; the recipes folder:cpu "
            "(images of your own) and cifar10:cpu are made for this",
        )
    return Finding(OK, text)
