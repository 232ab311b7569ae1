"""Every setting there is, with its default and its meaning, and the checks that need no data.

A recipe file in `configs/` starts from `default_config()` and sets what differs. RECIPE settings decide the
mathematics of a run and may not change within a workdir; the others say where things are and what is shown.
"""

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from moco_jax import encoders
from moco_jax.data import recipes
from moco_jax.dictionary import BANK_ROWS
from moco_jax.encoders import (
    ATTENTIONS,
    BACKBONES,
    HEADS,
    PREDICTORS,
    REDUCE,
    REMATS,
    STEMS,
)
from moco_jax.errors import UserError
from moco_jax.method import DICTIONARIES, KEY_ENCODERS, LOSSES, QUEUE_STARTS, SHUFFLES, Method
from moco_jax.optim import OPTIMIZERS

RECIPE = dict(
    seed=0,  # of weights, queue, order and views
    init_from="",  # workdir or file of weights that a new run starts from, see docs/weights.md; '': drawn at random
    dataset="digits",  # 'digits', 'folder', 'tar', 'tfrecord', 'arrayrecord' or 'tfds:NAME'; see docs/data.md
    split="train",  # of 'digits' and 'tfds:NAME', what is trained on; TFDS slices such as 'train[:10%]' work
    exif_rotation=False,  # turn images as their Exif orientation says; the authors' loader does not
    channels=3,  # of images and views; with any other number the colour operations are left out
    white=0.0,  # value that becomes 255 in images of more than eight bits; 0: 65535, only in sixteen bits
    background=-1,  # gray level 0 to 255 (255: white) that transparent pixels are blended with; -1: transparency is dropped, and the colours hidden there, often black, are seen
    max_pixels=178_956_970,  # height times width of the largest image that is decoded, Pillow's own limit; a larger one counts as damaged, before memory is taken for it
    image_size=32,  # side of a view in pixels
    augment="digits",  # which views: 'v1', 'v2', 'v3' (BYOL's), 'cifar', 'digits', 'linear' (crop and flip)
    augment_on="host",  # who makes views: 'host'; 'device': within the step, what follows the crop; 'resident': all of it, of images that live on the devices
    scaled_decoding=False,  # decode JPEGs far larger than their views at 1/2, 1/4 or 1/8: faster, nearly the same views
    crop_min=0.0,  # smallest crop as a share of the image's area; 0: the augmentation's own
    mean=(0.485, 0.456, 0.406),  # per channel, of images scaled to 0..1
    std=(0.229, 0.224, 0.225),  # per channel: what subtracting `mean` leaves is divided by this
    arch="resnet50",  # of the encoders: 'resnet10' to 'resnet152', wide ones, 'vit_small' to 'vit_huge', 'vit_conv_small' and 'vit_conv_base'
    width=0,  # channels of a ResNet's first stage, or of a ViT's tokens; 0: the architecture's own
    stem="imagenet",  # of a ResNet: 'imagenet', 'cifar', 'cifar_stride2', 'cifar_pad2' or 'cifar_no_relu'
    zero_init_residual=False,  # a ResNet's blocks start as the identity (v3)
    head="linear",  # 'linear' (v1), 'mlp' (v2), 'v3_resnet' or 'v3_vit'
    head_width=0,  # features between the layers of head and predictor; 0: each one's own
    predictor="none",  # on top of the query's head: 'v3_resnet' or 'v3_vit'
    dim=128,  # length of queries and keys
    key_encoder="momentum",  # who encodes keys: 'momentum', 'query' (end-to-end), 'none' (memory bank); see moco_jax/method.py
    dictionary="queue",  # where negatives come from: 'queue', 'batch' or 'memory_bank'
    batch_size=256,  # over all devices and hosts
    bn_groups=8,  # groups of samples that share BatchNorm statistics; the paper's 8 GPUs
    accumulate=1,  # parts in which the backbone goes through a batch that the devices do not hold at once
    shuffle="exchange",  # how key images change their BN groups (shuffled BN): 'exchange', 'permutation' or 'none'
    shuffle_groups=8,  # groups among which 'exchange' moves them
    symmetric=False,  # both views as queries; the two losses add
    queue_size=65536,  # K, keys in the queue
    queue_start="random",  # what a queue starts with: 'random' vectors that count as keys, as in the authors' code, or 'empty'
    bank_negatives=65536,  # entries of the memory bank that are drawn at a step
    bank_momentum=0.5,  # share of an entry of the memory bank that stays when its example is seen
    mask_same_example=False,  # leave out negatives that were made from the query's own example
    momentum=0.999,  # m of the momentum encoder
    momentum_schedule="constant",  # of m: 'constant', or 'cosine' from it to 1 (v3)
    loss="info_nce",  # or 'nce', the memory bank's first form
    times_2t=False,  # multiply the loss by 2 tau (v3)
    temperature=0.07,  # tau of the contrastive loss
    epochs=200,  # times that every image is seen; the schedules end there
    optimizer="sgd",  # 'sgd', 'lars' or 'adamw'
    lr=0.03,  # for the batch as it is ...
    lr_reference_batch=0,  # ... unless this is set: then times batch_size / lr_reference_batch
    lr_schedule="steps",  # 'steps' or 'cosine', constant within an epoch; or 'cosine_per_step'
    lr_steps=(120, 160),  # epochs at which 'steps' divides by ten
    warmup_epochs=0,  # in which the rate rises from 0, at every step
    first_epoch=0,  # number of the first epoch in the schedule: 0, or 1 as in the CIFAR demo
    sgd_momentum=0.9,  # of 'sgd' and 'lars'
    weight_decay=1e-4,  # of all trained parameters; with 'lars' of those of rank two and more
    reduce="parameter",  # gradients are summed in the 'parameter' dtype (float32), or in that of 'compute'
    compute_dtype="auto",  # 'float32', 'bfloat16', 'float64'; auto: float32 on CPU, else bfloat16
)
OPERATIONAL = dict(
    data_dir="",  # folder of images, list of paths, shards (folder or pattern), or the TFDS data directory ('': its default)
    eval_split="",  # labelled images that the monitor classifies; '': some of the training images
    log_every=10,  # steps between lines and records
    monitor_every=10,  # epochs between kNN scores; 0: none
    knn_k=200,  # neighbours that vote in a kNN score
    knn_temperature=0.1,  # of their votes: each weighs exp(cosine / knn_temperature)
    knn_features="backbone",  # 'backbone' (pooled) or 'output' (after the head)
    knn_examples=0,  # training images that the monitor searches, at most; 0: all
    eval_batch_size=256,  # images that are scored at once, over all devices
    remat="none",  # of a ViT: 'block' computes each block again in the backward pass, to save memory
    attention="plain",  # of a ViT: 'lean' keeps no attention weights, to save memory
    checkpoint_every=0,  # steps between checkpoints; 0: an epoch, or as many as have 100 steps
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


def check_names(arguments: Iterable[str], known: Iterable[str]) -> None:
    """Refuse command-line words `--config.NAME` whose NAME is none of the `known` settings."""
    known = list(known)
    for argument in arguments:
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
    _one_of(config, "predictor", PREDICTORS)
    _one_of(config, "key_encoder", KEY_ENCODERS)
    _one_of(config, "dictionary", DICTIONARIES)
    _one_of(config, "loss", LOSSES)
    _one_of(config, "shuffle", SHUFFLES)
    _one_of(config, "queue_start", QUEUE_STARTS)
    _one_of(config, "momentum_schedule", ("constant", "cosine"))
    _one_of(config, "optimizer", OPTIMIZERS)
    _one_of(config, "stem", STEMS)
    _one_of(config, "remat", REMATS)
    _one_of(config, "attention", ATTENTIONS)
    _one_of(config, "augment", recipes.RECIPES)
    _one_of(config, "augment_on", ("host", "device", "resident"))
    _one_of(config, "lr_schedule", ("steps", "cosine", "cosine_per_step"))
    _one_of(config, "reduce", REDUCE)
    _one_of(config, "knn_features", ("backbone", "output"))
    _one_of(config, "compute_dtype", ("auto", "float32", "bfloat16", "float64"))
    for key in ("channels", "max_pixels", "image_size", "dim", "batch_size", "bn_groups", "shuffle_groups", "queue_size", "bank_negatives", "accumulate", "epochs",
                "temperature", "lr", "max_bad_steps", "spike_factor", "log_every", "keep", "eval_batch_size", "knn_k", "knn_temperature"):  # fmt: skip
        if config[key] <= 0:
            raise UserError(
                f"{key}={config[key]} must be above 0; {default_config()[key]} is the default"
            )
    for key in ("crop_min", "white", "width", "head_width", "warmup_epochs", "lr_reference_batch", "first_epoch", "weight_decay", "sgd_momentum", "monitor_every",
                "knn_examples", "checkpoint_every", "cpu_devices", "workers", "max_bad_images", "stop_at_step"):  # fmt: skip
        if config[key] < 0:
            raise UserError(
                f"{key}={config[key]} must not be negative; {default_config()[key]} is the default"
            )
    check_views(config)
    if not 0 <= config.bank_momentum < 1:
        raise UserError(
            f"bank_momentum={config.bank_momentum} must be at least 0 and below 1; 0.5 is InstDisc's"
        )
    if config.warmup_epochs >= config.epochs:
        raise UserError(
            f"warmup_epochs={config.warmup_epochs} leaves nothing of epochs={config.epochs}; "
            f"{config.epochs // 10} does"
        )
    method_of(config).check()
    if not 0 <= config.momentum < 1:
        raise UserError(
            f"momentum={config.momentum} must be at least 0 and below 1; 0.999 is the paper's"
        )
    check_background(config.background, config.channels)
    if config.scaled_decoding and config.channels != 3:
        raise UserError(
            f"scaled_decoding=True is of JPEGs in colour, and channels={config.channels}; scaled_decoding=False works"
        )
    if config.eval_split and config.dataset != "digits" and not config.dataset.startswith("tfds:"):
        raise UserError(
            f"eval_split={config.eval_split!r} is of 'digits' and 'tfds:NAME', and dataset={config.dataset!r} is one whole: "
            "the images would be scored among themselves; --config.eval_split= sets some of them apart"
        )
    if config.augment_on == "resident" and config.scaled_decoding:
        raise UserError(
            "scaled_decoding=True shrinks images for the views of an epoch, and augment_on='resident' decodes each once "
            "for all; scaled_decoding=False works"
        )
    if config.loss == "nce" and config.temperature < 0.03:
        raise UserError(
            f"temperature={config.temperature} overflows the exponents of loss='nce'; 0.03 and above work"
        )
    if config.keep < 2:
        raise UserError(
            f"keep={config.keep} leaves nothing to go back to if a checkpoint is damaged; 2 does"
        )
    if not 0 <= config.profile_steps[0] <= config.profile_steps[1]:
        raise UserError(
            f"profile_steps={tuple(config.profile_steps)} are no first and last step; (20, 25) are"
        )


def check_background(background: int, channels: int) -> None:
    """Refuse a `background` that is no gray level, or where transparency is a channel of its own."""
    if not -1 <= background <= 255:
        raise UserError(
            f"background={background} is no gray level: 0 (black) to 255 (white) work, and -1, which drops transparency"
        )
    if background >= 0 and channels not in (1, 3):
        raise UserError(
            f"background={background} is for images in gray or colour, and channels={channels}; background=-1 works"
        )


def check_views(config: ConfigDict) -> None:
    """The part of `check_values` on the images that the encoder gets: their size, channels and statistics."""
    encoders.check(
        config.arch, config.image_size, config.width or None, stem=config.stem, remat=config.remat,
        zero_init_residual=config.zero_init_residual, attention=config.attention,
    )  # fmt: skip
    for key in ("mean", "std"):
        value, needed = tuple(config[key]), config.channels
        if len(value) != needed:
            raise UserError(
                f"{key}={value} has {len(value)} values, and channels={needed} asks for {needed}; the section "
                "'images' of python -m moco_jax.doctor prints those of your images"
            )
    if min(config.std) <= 0:
        raise UserError(
            f"std={tuple(config.std)} must be above 0 in every channel; 1 does for a channel that is constant"
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
    parts = config.accumulate
    if groups % parts and encoders.has_batch_norm(config.arch):
        raise UserError(
            f"accumulate={parts} would cut BatchNorm groups of {config.arch} apart (bn_groups={groups}), and each needs "
            f"all of its images at once; accumulate={math.gcd(parts, groups)} works, or a vit without conv stem, "
            "whose only BatchNorm is in the head"
        )
    if batch % (parts * device_count):
        raise UserError(
            f"batch_size={batch} does not divide into accumulate={parts} parts on {device_count} devices; "
            f"{_multiples(batch, parts * device_count)}"
        )
    if config.dictionary == "memory_bank" and BANK_ROWS % device_count:
        raise UserError(
            f"dictionary='memory_bank' does not divide over {device_count} devices; 1, 2, 4, ... {BANK_ROWS} do"
        )
    if config.dictionary == "memory_bank" and config.bank_negatives % device_count:
        raise UserError(
            f"bank_negatives={config.bank_negatives} does not divide over {device_count} devices; "
            f"{_multiples(config.bank_negatives, device_count)}"
        )


def method_of(config: ConfigDict) -> Method:
    """The choice of parts that `config` makes."""
    bank = config.dictionary == "memory_bank"
    return Method(
        key_encoder=config.key_encoder, dictionary=config.dictionary,
        negatives=config.bank_negatives if bank else config.queue_size,
        temperature=config.temperature, symmetric=config.symmetric, loss=config.loss,
        times_2t=config.times_2t, queue_start=config.queue_start,
        mask_same_example=config.mask_same_example, bank_momentum=config.bank_momentum,
        shuffle=config.shuffle, bn_groups=config.bn_groups, shuffle_groups=config.shuffle_groups,
    )  # fmt: skip


def queue_life(config: ConfigDict) -> int:
    """Steps that a key stays in the queue, K / B, or K / 2B where both views become keys; 0 without a queue."""
    if config.dictionary != "queue":
        return 0
    return -(-config.queue_size // (config.batch_size * (2 if config.symmetric else 1)))


def encoder_options(config: ConfigDict) -> dict[str, Any]:
    """The arguments of `encoders.create` for the query encoder of `config`, undivided and in its default dtype."""
    return dict(
        name=config.arch, head=config.head, head_width=config.head_width, predictor=config.predictor,
        dim=config.dim, width=config.width or None, stem=config.stem, bn_groups=config.bn_groups,
        zero_init_residual=config.zero_init_residual, remat=config.remat, attention=config.attention,
        reduce=config.reduce,
    )  # fmt: skip


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
