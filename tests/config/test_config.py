"""Every recipe passes its checks, and every bad setting is refused by one line that names it."""

import importlib
import re

import numpy as np
import pytest

from moco_jax import config as config_lib
from moco_jax.base.errors import UserError
from moco_jax.cli.command_line import SETTINGS
from moco_jax.data.configured import recipe_of
from moco_jax.method.configured import peak_learning_rate
from moco_jax.training import checks

RECIPES = [
    "digits",
    "folder",
    "folder:cpu",
    "cifar10",
    "cifar10:symmetric",
    "cifar10:cpu",
    "imagenet:v1",
    "imagenet:v2",
    "imagenet:v2_800ep",
]
BANK = {"key_encoder": "none", "dictionary": "memory_bank"}
NCE = BANK | {"loss": "nce"}
# What the paper and its authors' code (MoCo v3) say of all models, of each kind, and of each.
V3 = dict(
    image_size=224,
    augment="v3",
    batch_size=4096,
    lr_reference_batch=256,
    lr_schedule="cosine_per_step",
    first_epoch=0,
    key_encoder="momentum",
    momentum_schedule="cosine",
    dictionary="batch",
    symmetric=True,
    loss="info_nce",
    times_2t=True,
    bn_groups=1,
    shuffle="none",
    dim=256,
    head_width=4096,
    width=0,
    stem="imagenet",
    channels=3,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)
V3_RESNET = dict(
    arch="resnet50",
    head="v3_resnet",
    predictor="v3_resnet",
    zero_init_residual=True,
    crop_min=0.2,
    temperature=1.0,
    optimizer="lars",
    sgd_momentum=0.9,
    warmup_epochs=10,
)
V3_VIT = dict(
    head="v3_vit",
    predictor="v3_vit",
    crop_min=0.08,
    temperature=0.2,
    optimizer="adamw",
    lr=1.5e-4,
    weight_decay=0.1,
    epochs=300,
    warmup_epochs=40,
    momentum=0.99,
    zero_init_residual=False,
)
V3_MODELS = {
    "": V3_RESNET | dict(epochs=100, lr=0.6, weight_decay=1e-6, momentum=0.99),
    "resnet50": V3_RESNET | dict(epochs=100, lr=0.6, weight_decay=1e-6, momentum=0.99),
    "resnet50_300ep": V3_RESNET | dict(epochs=300, lr=0.3, weight_decay=1e-6, momentum=0.99),
    "resnet50_1000ep": V3_RESNET | dict(epochs=1000, lr=0.3, weight_decay=1.5e-6, momentum=0.996),
    "vit_small": V3_VIT | dict(arch="vit_small"),
    "vit_base": V3_VIT | dict(arch="vit_base"),
    "vit_conv_small": V3_VIT | dict(arch="vit_conv_small"),
    "vit_conv_base": V3_VIT | dict(arch="vit_conv_base"),
}


def load(name):
    module, _, variant = name.partition(":")
    return importlib.import_module(f"configs.{module}").get_config(variant)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_accepted(name):
    checks.check(load(name), 1)


@pytest.mark.parametrize("variant", V3_MODELS)
def test_v3_is_as_published(variant):
    config = load(f"imagenet_v3:{variant}")
    published = V3 | V3_MODELS[variant]
    assert {name: config[name] for name in published} == published
    assert peak_learning_rate(config) == pytest.approx(16 * published["lr"])
    for devices in (1, 8):
        checks.check(config, devices)
    if variant in ("vit_small", "vit_base"):
        config.accumulate = 32  # the command in the file
        checks.check(config, 1)


def test_views_of_v3_are_as_published():
    for variant, crop_min in (("resnet50", 0.2), ("vit_base", 0.08)):
        recipe = recipe_of(load(f"imagenet_v3:{variant}"))
        assert recipe.stages == ("crop", "color", "grayscale", "blur", "solarize", "flip")
        assert recipe.crop_scale == (crop_min, 1.0)
        assert recipe.jitter == (0.4, 0.4, 0.2, 0.1)
        assert (recipe.jitter_probability, recipe.grayscale_probability) == (0.8, 0.2)
        assert recipe.blur_sigma == (0.1, 2.0)
        assert recipe.blur_probability == (1.0, 0.1)
        assert recipe.solarize_probability == (0.0, 0.2)
        assert recipe.flip_probability == 0.5
        assert (recipe.image_size, recipe.evaluation_resize) == (224, 256)


@pytest.mark.parametrize(
    ("changes", "devices", "message"),
    [
        ({"batch_size": 250}, 1, "batch_size=250 does not divide into bn_groups=8; use 192 or 256"),
        (
            {"batch_size": 8 * 12},
            1,
            "batch_size=96 makes BN groups of 12, no multiple of shuffle_groups=8",
        ),
        ({"shuffle_groups": 3}, 1, "bn_groups=8 is no multiple of shuffle_groups=3"),
        ({}, 3, "batch_size=256 does not divide over 3 devices; use 192 or 384"),
        (
            {"key_encoder": "query"},
            1,
            "key_encoder='query' does not go with dictionary='queue'; use dictionary='batch'",
        ),
        ({"loss": "nce"}, 1, "loss='nce' is the memory bank's"),
        (
            {"accumulate": 3},
            1,
            "accumulate=3 would cut BatchNorm groups of resnet50 apart .*accumulate=1 works",
        ),
        ({"warmup_epochs": 200}, 1, "warmup_epochs=200 must be less than epochs=200; try 20"),
        (BANK | {"symmetric": True}, 1, "symmetric=True needs keys of both views"),
        (
            dict(BANK, batch_size=240, eval_batch_size=240, bn_groups=6, shuffle_groups=2),
            3,
            "'memory_bank' does not divide over 3 devices",
        ),
        ({"queue_size": 0}, 1, "queue_size=0 must be at least 1 and at most"),
        ({"arch": "resnet19"}, 1, "arch='resnet19' is unknown; use one of resnet10, resnet18"),
        ({"head": "none"}, 1, "head='none' is unknown; use one of linear, mlp"),
        ({"augment": "v5"}, 1, "augment='v5' is unknown; use one of v1, v2, v3"),
        (
            {"temperature": 0.0},
            1,
            "temperature=0.0 must be at least 0.0001 and at most 100; try 0.07",
        ),
        (NCE | {"temperature": 0.01}, 1, "temperature=0.01 .*0.03"),
        (
            {"augment_on": "tpu"},
            1,
            "augment_on='tpu' is unknown; use one of host, device, resident",
        ),
        (
            {"channels": 1, "mean": (0.5,), "std": (0.2,), "scaled_decoding": True},
            1,
            "scaled_decoding=True .*channels=1; use scaled_decoding=False",
        ),
        (
            {"augment_on": "resident", "scaled_decoding": True},
            1,
            "scaled_decoding=True .*augment_on='resident'.*use scaled_decoding=False",
        ),
        (
            {"dataset": "folder", "eval_split": "validation"},
            1,
            "eval_split='validation' .*dataset='folder' has no splits; .*--config.eval_split= to",
        ),
        (
            {"dataset": "digits", "data_dir": "x"},
            1,
            "data_dir=x says .* dataset='folder' reads yours",
        ),
        ({"momentum": 1.0}, 1, "momentum=1.0 must be at least 0 and below 1"),
        ({"lr": 0.0}, 1, "lr=0.0 must be above 0"),
        ({"cpu_devices": -1}, 1, "cpu_devices=-1 must be at least 0 and at most 1024; try 0"),
        ({"arch": "vit_small", "stem": "cifar"}, 1, "stem='cifar' means nothing to vit_small"),
        (
            {"arch": "vit_small", "image_size": 36},
            1,
            "image_size=36 .* patches of 16; use 32 or 48",
        ),
        ({"arch": "vit_small", "width": 64}, 1, "width=64 does not divide into 12 heads"),
        ({"reduce": "float32"}, 1, "reduce='float32' is unknown; use one of parameter, compute"),
    ],
)
def test_bad_settings_are_refused(changes, devices, message):
    config = config_lib.default_config()
    config.update(changes)
    with pytest.raises(UserError, match=message):
        checks.check(config, devices)


def refusal(config, devices):
    try:
        checks.check_batch(config, devices)
    except UserError as error:
        return str(error)
    return ""


def test_the_batch_sizes_that_a_refusal_names_are_taken():
    """Each refusal of a batch ends in numbers that pass all checks of batches, whatever is set."""
    rng, named = np.random.default_rng(0), 0
    for _ in range(2000):
        config = config_lib.default_config()
        groups, parts = int(rng.choice([1, 2, 4, 8, 12])), int(rng.choice([1, 1, 2, 4]))
        config.update(
            arch=str(rng.choice(["resnet50", "vit_small"])),
            bn_groups=groups,
            shuffle_groups=int(rng.choice([1, 2, 4, 8])),
            accumulate=parts,
            batch_size=int(rng.integers(1, 600)),
            eval_batch_size=int(rng.integers(1, 600)),
            dictionary="batch",
            loss="info_nce",
        )
        devices = int(rng.choice([1, 2, 3, 8]))
        said = refusal(config, devices)
        key = said.partition("=")[0]
        if key not in ("batch_size", "eval_batch_size"):
            continue
        for number in map(int, re.findall(r"\d+", said.rpartition("use ")[2])):
            named += 1
            config[key] = number
            assert not refusal(config, devices).startswith(f"{key}="), said
    assert named > 1000


def test_unknown_names_are_refused_with_the_nearest():
    config_lib.check_names(
        ["--config.lr=1", "--config=configs/digits.py:a", "--workdir=y"], SETTINGS
    )
    with pytest.raises(
        UserError, match=r"--config\.batchsize is not a setting; did you mean batch_size"
    ):
        config_lib.check_names(["--config.batchsize=3"], SETTINGS)


def test_unknown_variants_are_refused_with_the_known():
    with pytest.raises(
        UserError, match="variant='v7' is unknown; this config has v2, v1, v2_800ep"
    ):
        load("imagenet:v7")


def test_the_rate_is_scaled_only_when_the_config_says_so():
    config = load("imagenet:v2")
    config.batch_size = 1024
    assert peak_learning_rate(config) == 0.03
    config.lr_reference_batch = 256
    assert peak_learning_rate(config) == pytest.approx(0.12)


def test_a_setting_that_an_older_run_does_not_know_had_its_default():
    new = config_lib.default_config()
    old = {name: value for name, value in new.to_dict().items() if name != "exif_rotation"}
    assert config_lib.recipe_differences(old, new) == {}
    new.exif_rotation = True
    assert config_lib.recipe_differences(old, new) == {"exif_rotation": (False, True)}
