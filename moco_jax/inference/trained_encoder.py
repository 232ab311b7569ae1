"""A trained encoder to be put to work: of a run's workdir, or of a file of weights, whoever made it."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from moco_jax import config as config_lib
from moco_jax import encoders
from moco_jax.base import files, random_keys
from moco_jax.base.errors import UserError
from moco_jax.encoders.configured import check_views, encoder_options
from moco_jax.weights import bridge, workdir
from moco_jax.weights.pretrained import Pretrained
from moco_jax.weights.workdir import PARTS, read_config

__all__ = ["PARTS", "Trained", "is_run", "load", "read_config", "untrained"]

is_run = bridge.is_run


@dataclasses.dataclass(frozen=True)
class Trained:
    """An encoder with its weights and what its images are normalised with.

    Attributes:
        encoder: the Linen module; `features` before the head, a call after it.
        variables: `{'params', 'batch_stats'}` of NumPy arrays; without 'head' in them where a
            file holds a backbone alone.
        config: the settings of the run; of a file what it says (architecture, image_size,
            channels, mean, std), `dataset` is '' and the rest are defaults.
        step: after which the weights were saved; 0 of a file.
        assumed: the settings among image_size, mean and std that neither a run, the file nor the
            caller gave.
        remarks: of a file, sentences on what was read otherwise than it stands there, or is not
            known of it.
    """

    encoder: encoders.Encoder
    variables: dict[str, Any]
    config: ConfigDict
    step: int
    assumed: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def has_head(self) -> bool:
        """Whether there are weights of a head."""
        return "head" in self.variables["params"]


def load(
    place: str,
    which: str = "query",
    step: int | None = None,
    *,
    image_size: int = 0,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    stem: str = "",
) -> Trained:
    """The encoder in `place`.

    Args:
        place: a workdir, or a file or folder of weights that `bridge.load` reads.
        which: 'query', or 'key' for the momentum encoder.
        step: of which checkpoint of a run; None: the last sound one.
        image_size: side of the images in pixels; 0: as the run or the file says, or else 224.
        mean, std: per channel, of images scaled to 0..1; empty: as the run or the file says, or
            else ImageNet's.
        stem: of a ResNet in a file, as in `bridge.load`.

    Raises:
        UserError: nothing readable or sound there, no such encoder in it, or a size or
            statistics that do not fit.
    """
    if which not in PARTS:
        raise UserError(f"which={which!r} is no encoder of a run; known are {', '.join(PARTS)}")
    given: dict[str, Any] = {"image_size": image_size, "mean": tuple(mean), "std": tuple(std)}
    given = {name: value for name, value in given.items() if value}
    assumed: list[str] = []
    remarks: tuple[str, ...] = ()
    if is_run(place):
        if stem:
            raise UserError(f"stem={stem!r} is of files; the run in {place} has its own")
        config = read_config(place)
        step = workdir.sound_step(place, step)
        variables = workdir.variables(place, which, step)
        if not variables["params"]:
            raise UserError(f"{place} has no momentum encoder (key_encoder={config.key_encoder!r})")
        bridge.check_run(place, step, variables)
    else:
        if step and files.absolute(place).exists():  # 0 is what a file's own answer says
            raise UserError(f"step={step} is of a run, and {place} is a file; leave it out")
        pretrained = bridge.load(place, stem=stem)
        chosen = pretrained.chosen(which)
        if chosen is None:
            raise UserError(f"{place} holds no momentum encoder; which='query' is there")
        said = pretrained.preprocessing
        assumed = [name for name in ("image_size", "mean", "std") if name not in said | given]
        config, variables, step = _config_of(pretrained), chosen, 0
        remarks = pretrained.remarks
        if pretrained.channels != 3 and {"mean", "std"} & set(assumed):
            raise UserError(
                f"{place} is of images of {pretrained.channels} channels: mean and std must be"
                " given, a number each (python -m moco_jax.doctor prints those of a folder's"
                " images)"
            )
    config.update(given)
    check_views(config)
    options = encoder_options(config)
    if which == "key":
        options["predictor"] = "none"
    return Trained(encoders.create(**options), variables, config, step, tuple(assumed), remarks)


def _config_of(pretrained: Pretrained) -> ConfigDict:
    """The settings that a file of weights tells; where it is silent, those of ImageNet's recipes."""
    config, options = config_lib.default_config(), dict(pretrained.options)
    said = pretrained.preprocessing
    # A stem for small images means images that nobody enlarges first.
    small = options.get("stem", "imagenet") != "imagenet"
    resize = said.get("resize", pretrained.image_size if small else 0)
    config.update(
        dataset="",
        arch=options.pop("name"),
        width=options.pop("width", None) or 0,
        image_size=pretrained.image_size,
        channels=pretrained.channels,
        augment="cifar" if resize == pretrained.image_size else "linear",
        bn_groups=1,
        shuffle="none",
        **options,
        **{name: said[name] for name in ("mean", "std") if name in said},
    )
    return config


def untrained(found: Trained) -> Trained:
    """The encoder of the same run before its first step; of a file's architecture, as it would be drawn."""
    config = found.config
    rng, _ = jax.random.split(random_keys.of_seed(config.seed))
    images = jnp.zeros((1, config.image_size, config.image_size, config.channels))

    def create() -> Any:
        return found.encoder.init(rng, images, train=False, method=found.encoder.predict)

    # It runs once: on a CPU a program that is not optimised is there in a fourth of the time.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    made = jax.device_get(jax.jit(create, compiler_options=options)())
    variables = {"params": made["params"], "batch_stats": made.get("batch_stats", {})}
    return dataclasses.replace(found, variables=variables, step=0)
