"""The settings of the recipe (the mathematics of a run), in the order in which help shows them.

Bounds are of two sorts: what the mathematics allows (a momentum below 1), and for sizes more than
any machine of today holds, so that a slip of the hand is refused before anything is built.
"""

from moco_jax.config import imagenet, registry
from moco_jax.config.settings.kinds import (
    LARGEST,
    Range,
    choice,
    count,
    number,
    several,
    switch,
    table,
    text,
)

MANY = 2**20  # images, or groups of them, in a batch
EPOCHS = 10**6
KEYS = 2**28  # a key is at least a few bytes
OF_0_TO_1 = "of images scaled to 0..1; divide numbers of 0..255 by 255"


def _dataset(value: str) -> str:
    """Say what is wrong with the name of a dataset; '' where nothing is."""
    if value.startswith("tfds:"):
        name = value.removeprefix("tfds:").strip()
        return "" if name else "names no dataset behind the colon; try 'tfds:cifar10'"
    kind, colon, named = value.partition(":")
    if colon and kind in registry.TABLES:
        words = [word.strip() for word in named.split(",")]
        if len(words) <= 2 and all(words):
            return ""
        return f"names no column of images, and perhaps one of classes; try '{kind}:image,label'"
    return (
        "" if value in registry.SOURCES else f"is unknown; use one of {registry.SOURCES_IN_WORDS}"
    )


def _white(value: float) -> str:
    """Say what is wrong with a value that becomes 255; '' where nothing is."""
    return "must be 0 or at least 1e-06; try 65535.0" if 0 < value < 1e-6 else ""


def _ascending(epochs: tuple[int, ...]) -> str:
    """Say what is wrong with the order of `epochs`; '' where nothing is."""
    ordered = tuple(sorted(set(epochs)))
    return "" if epochs == ordered else f"must ascend, with each epoch once; try {ordered}"


RECIPE = table(
    "recipe",
    {
        "start": {
            "seed": (
                count(0, 0, 2**63 - 1),
                "what weights, queue, order and views are drawn from",
            ),
            "init_from": (
                text(""),
                "workdir or file of weights that a new run starts from, see docs/weights.md; '': "
                "drawn at random",
            ),
        },
        "images": {
            "dataset": (
                text("digits", _dataset),
                "'digits', 'folder', 'tar', 'tfrecord', 'arrayrecord', 'parquet', 'hf' (or "
                "'parquet:IMAGE,LABEL', 'hf:IMAGE,LABEL', by columns) or 'tfds:NAME'; see "
                "docs/data.md",
            ),
            "split": (
                text("train"),
                "the images to train on, of 'digits', 'hf' and 'tfds:NAME'; TFDS slices such as "
                "'train[:10%]' work",
            ),
            "exif_rotation": (
                switch(False),
                "turn images as their Exif orientation says; the authors' loader does not",
            ),
            "channels": (
                count(3, 1, 1024),
                "channels of images and views; unless there are 3, colour operations are left out",
            ),
            "white": (
                number(0.0, 0, 2**32, rule=_white),
                "value that becomes 255 in images of more than eight bits; 0: 65535, only in "
                "sixteen bits",
            ),
            "background": (
                count(
                    -1, -1, 255, why="a gray level: 0 is black, 255 white; -1 drops transparency"
                ),
                "gray level 0 to 255 (255: white) that transparent pixels are blended with; -1: "
                "transparency is dropped, and the colours hidden there, often black, are seen",
            ),
            "max_pixels": (
                count(178_956_970, 1, 2**40),
                "height times width of the largest image that is decoded, Pillow's own limit; a "
                "larger one counts as damaged, before memory is taken for it",
            ),
        },
        "views": {
            "image_size": (
                count(32, 1, 8192),
                "side of a view in pixels",
            ),
            "augment": (
                choice("digits", registry.VIEWS),
                "which views: 'v1', 'v2', 'v3' (BYOL's), 'cifar', 'digits', 'linear' (crop and "
                "flip)",
            ),
            "augment_on": (
                choice("host", ("host", "device", "resident")),
                "where views are made: 'host'; 'device': the step does what follows the crop; "
                "'resident': the step does all of it, on images that live on the devices",
            ),
            "scaled_decoding": (
                switch(False),
                "decode JPEGs far larger than their views at 1/2, 1/4 or 1/8: faster, nearly the "
                "same views",
            ),
            "crop_min": (
                number(0.0, 0, 1),
                "smallest crop as a share of the image's area; 0: the augmentation's own",
            ),
            "mean": (
                several(imagenet.MEAN, Range(0, 1), length="channels", why=OF_0_TO_1),
                "mean of each channel, of images scaled to 0..1",
            ),
            "std": (
                several(imagenet.STD, Range(1e-4, 1), length="channels", why=OF_0_TO_1),
                "standard deviation of each channel, of images scaled to 0..1",
            ),
        },
        "encoder": {
            "arch": (
                choice("resnet50", registry.BACKBONES),
                "architecture of the encoders: 'resnet10' to 'resnet152', wide ones, "
                "'vit_small' to 'vit_huge', 'vit_conv_small' and 'vit_conv_base'",
            ),
            "width": (
                count(0, 0, 8192),
                "channels of a ResNet's first stage, or of a ViT's tokens; 0: the architecture's "
                "own",
            ),
            "stem": (
                choice("imagenet", registry.STEMS),
                "first layers of a ResNet: 'imagenet', 'cifar', 'cifar_stride2', 'cifar_pad2' or "
                "'cifar_no_relu'",
            ),
            "zero_init_residual": (
                switch(False),
                "a ResNet's blocks start as the identity (v3)",
            ),
            "head": (
                choice("linear", registry.HEADS),
                "'linear' (v1), 'mlp' (v2), 'v3_resnet' or 'v3_vit'",
            ),
            "head_width": (
                count(0, 0, 2**16),
                "features between the layers of head and predictor; 0: each one's own",
            ),
            "predictor": (
                choice("none", registry.PREDICTORS),
                "on top of the query's head: 'v3_resnet' or 'v3_vit'",
            ),
            "dim": (
                count(128, 1, 2**16),
                "length of queries and keys",
            ),
        },
        "method": {
            "key_encoder": (
                choice("momentum", registry.KEY_ENCODERS),
                "which encoder makes keys: 'momentum', 'query' (end-to-end), 'none' (memory bank); "
                "see moco_jax/method/choice.py",
            ),
            "dictionary": (
                choice("queue", registry.DICTIONARIES),
                "where negatives come from: 'queue', 'batch' or 'memory_bank'",
            ),
        },
        "batch": {
            "batch_size": (
                count(256, 1, MANY),
                "images in a step, over all devices and hosts",
            ),
            "bn_groups": (
                count(8, 1, MANY),
                "groups of samples that share BatchNorm statistics; the paper's 8 GPUs",
            ),
            "accumulate": (
                count(1, 1, MANY),
                "number of parts in which the backbone goes through a batch that is too large for "
                "the devices",
            ),
            "shuffle": (
                choice("exchange", registry.SHUFFLES),
                "how key images change their BN groups (shuffled BN): 'exchange', 'permutation' "
                "or 'none'",
            ),
            "shuffle_groups": (
                count(8, 1, MANY),
                "number of groups among which 'exchange' moves key images",
            ),
        },
        "keys": {
            "symmetric": (
                switch(False),
                "both views as queries; the two losses add",
            ),
            "queue_size": (
                count(65536, 1, KEYS),
                "K, the number of keys in the queue",
            ),
            "queue_start": (
                choice("random", registry.QUEUE_STARTS),
                "what a queue starts with: 'random' vectors that count as keys, as in the "
                "authors' code, or 'empty'",
            ),
            "bank_negatives": (
                count(65536, 1, KEYS),
                "entries of the memory bank that are drawn at a step",
            ),
            "bank_momentum": (
                number(0.5, 0, 1, below=True),
                "share of an entry of the memory bank that stays when its example is seen",
            ),
            "mask_same_example": (
                switch(False),
                "leave out negatives that were made from the query's own example",
            ),
            "momentum": (
                number(0.999, 0, 1, below=True),
                "m of the momentum encoder",
            ),
            "momentum_schedule": (
                choice("constant", ("constant", "cosine")),
                "schedule of momentum: 'constant', or 'cosine', which rises to 1 (v3)",
            ),
        },
        "loss": {
            "loss": (
                choice("info_nce", registry.LOSSES),
                "'info_nce', or 'nce', the memory bank's first form",
            ),
            "times_2t": (
                switch(False),
                "multiply the loss by 2 tau (v3)",
            ),
            "temperature": (
                number(0.07, 1e-4, 100),
                "tau of the contrastive loss",
            ),
        },
        "optimization": {
            "epochs": (
                count(200, 1, EPOCHS),
                "number of epochs; the schedules end with the last",
            ),
            "optimizer": (
                choice("sgd", registry.OPTIMIZERS),
                "'sgd', 'lars' or 'adamw'",
            ),
            "lr": (
                number(0.03, 0, LARGEST, above=True),
                "learning rate for the batch as it is, unless lr_reference_batch is set",
            ),
            "lr_reference_batch": (
                count(0, 0, MANY),
                "batch size that lr is for: lr is multiplied by batch_size / this; 0: lr as it is",
            ),
            "lr_schedule": (
                choice("steps", ("steps", "cosine", "cosine_per_step")),
                "'steps' or 'cosine', constant within an epoch; or 'cosine_per_step'",
            ),
            "lr_steps": (
                several((120, 160), Range(0, EPOCHS), rule=_ascending),
                "epochs at which 'steps' divides by ten; (): it never does",
            ),
            "warmup_epochs": (
                number(0.0, 0, EPOCHS),
                "epochs in which the rate rises from 0, at every step; 0.5 is half an epoch",
            ),
            "first_epoch": (
                choice(0, (0, 1)),
                "number of the first epoch in the schedule: 0, or 1 as in the CIFAR demo",
            ),
            "sgd_momentum": (
                number(0.9, 0, 1, below=True),
                "momentum of the optimizer, with 'sgd' and 'lars'",
            ),
            "weight_decay": (
                number(1e-4, 0, 100),
                "decay of all trained parameters; with 'lars' of those of rank two and more",
            ),
        },
        "arithmetic": {
            "reduce": (
                choice("parameter", registry.REDUCE),
                "gradients are summed in the 'parameter' dtype (float32), or in that of 'compute'",
            ),
            "compute_dtype": (
                choice("auto", ("auto", "float32", "bfloat16", "float64")),
                "'float32', 'bfloat16', 'float64'; auto: float32 on CPU, else bfloat16",
            ),
        },
    },
)
