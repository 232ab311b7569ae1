"""Findings on memory: of the compiled step on each device, and of the host."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from moco_jax.base.console import size
from moco_jax.base.findings import FAULT, NOTE, OK, WARNING, Finding
from moco_jax.data.sources import Source
from moco_jax.data.sources.records import ENCODED
from moco_jax.evaluation import features
from moco_jax.training import feed
from moco_jax.training.assembly import Program
from moco_jax.training.start import query_variables

TIGHT = 0.9


def tree_bytes(tree: Any) -> int:
    """Count the bytes of all arrays in `tree`, which may be abstract.

    Of a train state they are the bytes of a checkpoint.
    """
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def compiled_bytes(compiled) -> tuple[int, int]:
    """Return the bytes that a compiled step needs on one device, throughout and for a moment.

    Throughout: arguments, results and code.

    (0, 0) where the compiler does not say.
    """
    analysis = compiled.memory_analysis()
    if analysis is None:
        return 0, 0
    kept = (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
    )
    return kept + analysis.generated_code_size_in_bytes, analysis.temp_size_in_bytes


def host_available() -> int:
    """Return the bytes of memory that the host, or the container, still has; 0 if unknown."""
    found = []
    information = Path("/proc/meminfo")
    if information.exists():
        words = dict(line.split(":") for line in information.read_text().splitlines())
        found.append(int(words["MemAvailable"].split()[0]) * 1024)
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and limit.read_text().strip().isdigit():
        found.append(max(int(limit.read_text()) - int(used.read_text()), 0))
    return min(found, default=0)


def device_limit() -> tuple[int, str]:
    """Return the bytes that one device may use (0 if unknown), and words on whose they are."""
    devices = jax.local_devices()
    limit = (devices[0].memory_stats() or {}).get("bytes_limit", 0)
    if limit or devices[0].platform != "cpu":
        return limit, "the device has"
    return host_available() // len(devices), "its part of the host's free memory is"


def step(
    kept: int,
    moment: int,
    ahead: int,
    queue: int,
    limit: int,
    whose: str,
    batch_size: int,
    queue_size: int,
) -> list[Finding]:
    """Find whether the train step fits on a device.

    Args:
        kept, moment: bytes, as of `compiled_bytes`.
        ahead: bytes of the batches that wait there.
        queue: bytes of its part of the queue, within `kept`.
        limit: bytes of the device, 0 where unknown; `whose` in words.
        batch_size: B.
        queue_size: K.
    """
    if not kept + moment:
        return [Finding(NOTE, "the compiler does not say how much memory the step takes")]
    total = kept + moment + ahead
    text = (
        f"the step takes {size(total)} a device: {size(kept)} state and results, {size(moment)} "
        f"for a moment, {size(ahead)} batches ahead"
    )
    share = Finding(
        OK,
        f"K={queue_size:,} keys take {size(queue)} of it ({queue / total:.1%})",
    )
    if not limit:
        return [Finding(NOTE, f"{text}; how much a device has is not known"), share]
    text += f"; {whose} {size(limit)}"
    if total <= TIGHT * limit:
        return [Finding(OK, text), share]
    fits = max(int(batch_size * (TIGHT * limit - kept) / (moment + ahead)), 0)
    remedy = f"a batch_size of about {fits} fits" if fits else "take a smaller arch"
    if total <= limit:
        return [Finding(WARNING, f"{text}, which is tight: {remedy}, or take more devices"), share]
    return [Finding(FAULT, f"{text}, which is too little: {remedy}, or take more devices"), share]


def host(examples: int, per_example: int, bank: int, dim: int, available: int) -> list[Finding]:
    """Find what the host holds for the whole run.

    Args:
        examples: in the dataset.
        per_example: bytes of the index of each.
        bank: images whose features the monitor holds.
        dim: numbers in one of these features (float32).
        available: bytes, 0 where unknown.
    """
    index = examples * per_example
    # Features as they come, joined, and scaled to unit length: three copies at the peak.
    features = 3 * bank * dim * 4
    text = f"the host holds an index of {size(index)} ({per_example} bytes an image)"
    if bank:
        text += f" and up to {size(features)} of features while the run scores itself"
    if available and index + features > TIGHT * available:
        fewer = max(int(available / 2 / (3 * dim * 4)), 1)
        return [
            Finding(
                WARNING,
                (
                    f"{text}, of {size(available)} that are free: --config.knn_examples={fewer} "
                    "takes half of it"
                ),
            )
        ]
    return [Finding(OK, text)]


def bytes_per_example(source: Source) -> int:
    """Return the bytes that the host holds for each example of `source`.

    They are its pixels, the name of its file, or its place in a file.
    """
    if source.record_spec.dtype != ENCODED.dtype:
        return math.prod(source.record_spec.shape)
    files = getattr(source, "files", None)
    if files is None:
        # File, offset, length and label; the name where a source keeps it.
        return 20 + round(getattr(source, "nbytes", 0) / max(len(source), 1))
    return round(files.nbytes / len(files)) + 4  # name and label


def of_run(
    config: ConfigDict, program: Program, compiled: Any, source: Source | None, bank: int
) -> list[Finding]:
    """Find whether a run fits into the memory of its devices and of this host.

    Args:
        config: of the run.
        program: what its devices compute.
        compiled: the compiled step.
        source: the images, if they could be opened.
        bank: images whose features the monitor holds.
    """
    count, images = jax.device_count(), program.batch.images
    views = tree_bytes(dataclasses.replace(program.batch, images=None)) // count
    queue = tree_bytes(program.abstract.dictionary) // count
    kept, moment = compiled_bytes(compiled)
    findings = step(
        kept,
        moment,
        feed.AHEAD * views,
        queue,
        *device_limit(),
        config.batch_size,
        config.queue_size,
    )
    if images is not None and source is not None:
        held, batch = images.size // count, config.batch_size * images.shape[1]
        text = f"the {len(source):,} images take {size(held)} of it on each device"
        findings.append(Finding(OK, f"{text}; a step moves its batch's, {size(batch)}"))
    if source is not None:
        findings += host(
            len(source),
            bytes_per_example(source),
            bank,
            _feature_length(config, program),
            host_available(),
        )
    return findings


def _feature_length(config: ConfigDict, program: Program) -> int:
    """Return how many numbers a feature has that the monitor holds."""
    encode = features.make_encode(
        program.encoder, config.knn_features, config.mean, config.std, program.dtype, program.mesh
    )
    side = config.image_size
    images = jax.ShapeDtypeStruct((config.eval_batch_size, side, side, config.channels), np.uint8)
    return jax.eval_shape(encode, query_variables(program.abstract), images).shape[1]
