"""Every setting there is, with its default and its meaning, and the checks that need no data.

A recipe file in `configs/` starts from `default_config()` and sets what differs. RECIPE settings decide the
mathematics of a run and may not change within a workdir; the others say where things are and what is shown.
"""

import difflib
import math
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from moco_jax import encoders
from moco_jax.data import recipes
from moco_jax.encoders import BACKBONES, HEADS, REDUCE, STEMS
from moco_jax.errors import UserError

RECIPE = dict(
    seed=0,  # of weights, queue, order and views
    dataset="digits",  # 'digits', 'folder', 'tar', 'tfrecord', 'arrayrecord' or 'tfds:NAME'; see docs/data.md
    split="train",  # of 'digits' and 'tfds:NAME', what is trained on; TFDS slices such as 'train[:10%]' work
    exif_rotation=False,  # turn images as their Exif orientation says; the authors' loader does not
    image_size=32,  # side of a view in pixels
    augment="digits",  # which views: 'v1', 'v2', 'cifar', 'digits'
    augment_on="host",  # who applies what follows the crop: 'host', or 'device' within the step
    crop_min=0.0,  # smallest crop as a share of the image's area; 0: the augmentation's own
    mean=(0.485, 0.456, 0.406),  # per channel, of images scaled to 0..1
    std=(0.229, 0.224, 0.225),
    arch="resnet50",
    width=0,  # channels of a ResNet's first stage, or of a ViT's tokens; 0: the architecture's own
    stem="imagenet",  # of a ResNet: 'imagenet', 'cifar' or 'cifar_stride2'
    head="linear",  # 'linear' (v1) or 'mlp' (v2)
    dim=128,  # length of queries and keys
    batch_size=256,  # over all devices and hosts
    bn_groups=8,  # groups of samples that share BatchNorm statistics; the paper's 8 GPUs
    shuffle_groups=8,  # groups among which key images are exchanged (shuffled BN)
    symmetric=False,  # both views as queries; the two losses add
    queue_size=65536,  # K
    momentum=0.999,  # m of the momentum encoder
    temperature=0.07,  # tau of the contrastive loss
    epochs=200,
    lr=0.03,  # for the batch as it is ...
    lr_reference_batch=0,  # ... unless this is set: then times batch_size / lr_reference_batch
    lr_schedule="steps",  # 'steps' or 'cosine', constant within an epoch; or 'cosine_per_step'
    lr_steps=(120, 160),  # epochs at which 'steps' divides by ten
    first_epoch=0,  # number of the first epoch in the schedule: 0, or 1 as in the CIFAR demo
    sgd_momentum=0.9,
    weight_decay=1e-4,
    reduce="parameter",  # gradients are summed in the 'parameter' dtype (float32), or in that of 'compute'
    compute_dtype="auto",  # 'float32', 'bfloat16', 'float64'; auto: float32 on CPU, else bfloat16
)
OPERATIONAL = dict(
    data_dir="",  # folder of images, list of paths, shards (folder or pattern), or the TFDS data directory ('': its default)
    eval_split="",  # labelled images that the monitor classifies; '': some of the training images
    log_every=10,  # steps between lines and records
    monitor_every=10,  # epochs between kNN scores; 0: none
    knn_k=200,
    knn_temperature=0.1,
    knn_features="backbone",  # 'backbone' (pooled) or 'output' (after the head)
    knn_examples=0,  # training images that the monitor searches, at most; 0: all
    eval_batch_size=256,
    checkpoint_every=0,  # steps between checkpoints; 0: one an epoch
    keep=2,  # latest checkpoints kept, beside the best
    cpu_devices=0,  # where there is only a CPU: devices it is divided into; 0: one, or what XLA_FLAGS say
    workers=0,  # threads that make views; 0: as many as cores
    max_bad_steps=10,  # steps in a row with a loss or gradient that is not finite before it stops
    spike_factor=10.0,  # a gradient norm this many times its running mean is reported
    deterministic=False,  # on GPU: only operations that give the same bits every time
    compilation_cache="",  # folder for compiled programs, so that a restart need not compile; '': none
    profile_steps=(0, 0),  # first and last step of a profiler trace in the workdir; (0, 0): none
    max_bad_images=100,  # damaged images in a run that are replaced before it stops
    stop_at_step=0,  # save and end there, for a trial or a time limit; 0: at the end
)


def default_config() -> ConfigDict:
    """All settings at their defaults, locked: an unknown name is an error."""
    config = ConfigDict(RECIPE | OPERATIONAL)
    config.lock()
    return config


def pick_variant(variant: str, known: Iterable[str]) -> str:
    """`variant`, or the first of `known` when empty; UserError when it is none of them."""
    known = list(known)
    if variant and variant not in known:
        raise UserError(f"variant={variant!r} is unknown; this config has {', '.join(known)}")
    return variant or known[0]


def check_names(arguments: Iterable[str]) -> None:
    """Refuse command-line words `--config.NAME` whose NAME is no setting, and `--config=FILE` without the file."""
    known = RECIPE | OPERATIONAL
    for argument in arguments:
        file = re.match(r"--?config=([^:]+)", argument)
        if file and not os.path.isfile(file[1]):
            raise UserError(
                f"--config={file[1]} is no file; recipes are in configs/, as configs/digits.py"
            )
        found = re.match(r"--?config\.([^=]+)", argument)
        if found and found[1] not in known:
            close = difflib.get_close_matches(found[1], known) or sorted(known)
            raise UserError(
                f"--config.{found[1]} is not a setting; did you mean {', '.join(close)}?"
            )


def _one_of(config: Mapping[str, Any], key: str, known: Iterable[str]) -> None:
    if config[key] not in known:
        raise UserError(f"{key}={config[key]!r} is unknown; known are {', '.join(known)}")


def _multiples(value: int, unit: int) -> str:
    below, above = value // unit * unit, -(-value // unit) * unit
    return f"{below} and {above} do" if below else f"{above} does"


def check(config: ConfigDict, device_count: int) -> None:
    """Refuse, by a UserError that names setting, value and remedy, what cannot run on `device_count` devices."""
    check_values(config)
    check_batch(config, device_count)


def check_values(config: ConfigDict) -> None:
    """The part of `check` that looks at each setting alone."""
    _one_of(config, "arch", BACKBONES)
    _one_of(config, "head", HEADS)
    _one_of(config, "stem", STEMS)
    _one_of(config, "augment", recipes.RECIPES)
    _one_of(config, "augment_on", ("host", "device"))
    _one_of(config, "lr_schedule", ("steps", "cosine", "cosine_per_step"))
    _one_of(config, "reduce", REDUCE)
    _one_of(config, "knn_features", ("backbone", "output"))
    _one_of(config, "compute_dtype", ("auto", "float32", "bfloat16", "float64"))
    for key in ("image_size", "dim", "batch_size", "bn_groups", "shuffle_groups", "queue_size", "epochs",
                "lr", "max_bad_steps", "spike_factor", "log_every", "keep", "eval_batch_size", "knn_k", "knn_temperature"):  # fmt: skip
        if config[key] <= 0:
            raise UserError(
                f"{key}={config[key]} must be above 0; {default_config()[key]} is the default"
            )
    for key in ("crop_min", "width", "lr_reference_batch", "first_epoch", "weight_decay", "sgd_momentum", "monitor_every",
                "knn_examples", "checkpoint_every", "cpu_devices", "workers", "max_bad_images", "stop_at_step"):  # fmt: skip
        if config[key] < 0:
            raise UserError(
                f"{key}={config[key]} must not be negative; {default_config()[key]} is the default"
            )
    encoders.check(config.arch, config.image_size, config.width or None, stem=config.stem)
    if not 0 <= config.momentum < 1:
        raise UserError(
            f"momentum={config.momentum} must be at least 0 and below 1; 0.999 is the paper's"
        )
    if config.temperature < 0.03:
        raise UserError(
            f"temperature={config.temperature} overflows the loss's exponents; 0.03 and above work"
        )
    if config.keep < 2:
        raise UserError(
            f"keep={config.keep} leaves nothing to go back to if a checkpoint is damaged; 2 does"
        )
    if not 0 <= config.profile_steps[0] <= config.profile_steps[1]:
        raise UserError(
            f"profile_steps={tuple(config.profile_steps)} are no first and last step; (20, 25) are"
        )


def check_batch(config: ConfigDict, device_count: int) -> None:
    """The part of `check` that looks at how batch, BN groups, queue and devices divide; values must be sound."""
    batch, groups = config.batch_size, config.bn_groups
    span = min(config.shuffle_groups, groups)
    if batch % groups:
        raise UserError(
            f"batch_size={batch} does not divide into bn_groups={groups}; {_multiples(batch, groups)}"
        )
    if groups % span:
        raise UserError(
            f"bn_groups={groups} is no multiple of shuffle_groups={config.shuffle_groups}; "
            f"shuffle_groups={math.gcd(groups, config.shuffle_groups)} works"
        )
    if (batch // groups) % span:
        raise UserError(
            f"batch_size={batch} makes BN groups of {batch // groups}, no multiple of shuffle_groups={span}; "
            f"batch sizes that are multiples of {groups * span} work: {_multiples(batch, groups * span)}"
        )
    for key in ("batch_size", "eval_batch_size"):
        if config[key] % device_count:
            raise UserError(
                f"{key}={config[key]} does not divide over {device_count} devices; "
                f"{_multiples(config[key], math.lcm(device_count, groups * span))}"
            )
    if config.queue_size % batch:
        raise UserError(
            f"queue_size={config.queue_size} is no multiple of batch_size={batch}; "
            f"{_multiples(config.queue_size, batch)}"
        )


def peak_learning_rate(config: ConfigDict) -> float:
    """The rate at the start of the schedule, scaled to the batch only where the config says so."""
    scale = config.batch_size / config.lr_reference_batch if config.lr_reference_batch else 1
    return config.lr * scale


def recipe_differences(
    old: Mapping[str, Any], new: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Recipe settings that differ: name -> (old value, new value); one that `old` does not know had its default."""

    def plain(value: Any) -> Any:
        return list(value) if isinstance(value, tuple) else value

    return {
        key: (plain(old.get(key, RECIPE[key])), plain(new[key]))
        for key in RECIPE
        if plain(old.get(key, RECIPE[key])) != plain(new[key])
    }
