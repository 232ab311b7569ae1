"""Names that settings and flags choose from, known without loading the modules behind them.

Help, documentation and the check of a value need the names only, and the modules behind them take
seconds to load, JAX first of all. `tests/config/test_registry.py` compares each row with its table.
"""

import dataclasses
import sys
from typing import Any

from moco_jax.base.errors import UserError


@dataclasses.dataclass(frozen=True)
class Names:
    """The names in a table of another module, which is loaded at the first call.

    Attributes:
        place: where the table is, as 'module:attribute'.
        known: the names that the table has in this package.
    """

    place: str
    known: tuple[Any, ...]

    def __call__(self) -> tuple[Any, ...]:
        """Return `known`, or if the module is loaded the table's names: one may have been added."""
        module, _, attribute = self.place.partition(":")
        table = getattr(sys.modules.get(module), attribute, None)
        return self.known if table is None else tuple(table)


# The setting `dataset` beside 'tfds:NAME'; `data.sources.open_source` opens them.
SOURCES = ("digits", "folder", "tar", "tfrecord", "arrayrecord", "parquet", "hf")
TABLES = ("parquet", "hf")  # behind a colon columns can be named: "parquet:image,label"
WITH_SPLITS = "digits, hf and tfds:NAME"  # which have named parts
SOURCES_IN_WORDS = f"{', '.join(SOURCES)} and tfds:NAME, as in tfds:cifar10"


def has_splits(dataset: str) -> bool:
    """Return whether the images of `dataset` are named parts, as train and test."""
    return dataset.partition(":")[0] in ("digits", "hf", "tfds")


def split_of(dataset: str, split: str, default: str = "train") -> str:
    """Return the part of `dataset` that a flag --split names; '' where it has no parts.

    `default`: the part that is meant where the flag is left out.

    Raises:
        UserError: a part is named of a data set that has none.
    """
    if has_splits(dataset):
        return split or default
    if split:
        raise UserError(
            f"--split={split} is for {WITH_SPLITS}; dataset={dataset!r} has none, so leave it out"
        )
    return ""


VIEWS = Names(
    "moco_jax.data.views.recipes:RECIPES", ("v1", "v2", "v3", "cifar", "digits", "linear")
)

BACKBONES = Names(
    "moco_jax.encoders:BACKBONES",
    (
        *("resnet10", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
        *("resnet50w2", "resnet50w4"),
        *("vit_small", "vit_base", "vit_large", "vit_huge", "vit_conv_small", "vit_conv_base"),
    ),
)
STEMS = Names(
    "moco_jax.encoders:STEMS",
    ("imagenet", "cifar", "cifar_stride2", "cifar_pad2", "cifar_no_relu"),
)
HEADS = Names("moco_jax.encoders:HEADS", ("linear", "mlp", "v3_resnet", "v3_vit"))
PREDICTORS = Names("moco_jax.encoders:PREDICTORS", ("none", "v3_resnet", "v3_vit"))
REMATS = Names("moco_jax.encoders:REMATS", ("none", "block"))
ATTENTIONS = Names("moco_jax.encoders:ATTENTIONS", ("plain", "lean"))
REDUCE = Names("moco_jax.encoders:REDUCE", ("parameter", "compute"))

KEY_ENCODERS = Names("moco_jax.method.choice:KEY_ENCODERS", ("momentum", "query", "none"))
DICTIONARIES = Names("moco_jax.method.dictionary:DICTIONARIES", ("queue", "batch", "memory_bank"))
SHUFFLES = Names("moco_jax.method.choice:SHUFFLES", ("exchange", "permutation", "none"))
QUEUE_STARTS = Names("moco_jax.method.choice:QUEUE_STARTS", ("random", "empty"))
LOSSES = Names("moco_jax.method.choice:LOSSES", ("info_nce", "nce"))
OPTIMIZERS = Names("moco_jax.method.optimizers:OPTIMIZERS", ("sgd", "lars", "adamw"))

# The flags of commands choose from these.
ENCODERS_OF_A_RUN = Names("moco_jax.weights.workdir:PARTS", ("query", "key"))
FEATURES = Names("moco_jax.embedding.encode:KINDS", ("backbone", "output"))
WEIGHT_FORMATS = Names(
    "moco_jax.weights.bridge:FORMATS", ("torchvision", "timm", "moco", "detectron2", "huggingface")
)
SHARD_FORMATS = Names("moco_jax.data.packing:FORMATS", ("tfrecord", "arrayrecord", "raw"))
FINETUNE_RECIPES = Names("moco_jax.evaluation.finetune_recipe:RECIPES", ("sgd", "deit"))
GRID_RATES = Names(
    "moco_jax.evaluation.grid:RATES", (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
)
GRID_DECAYS = Names("moco_jax.evaluation.grid:DECAYS", (0.0, 1e-5, 1e-4, 1e-3))
