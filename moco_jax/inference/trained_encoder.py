"""Loads a trained encoder from a run's workdir or from a file of weights of any library."""

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

__all__ = ["PARTS", "TrainedEncoder", "is_run", "load", "read_config", "untrained"]

Settings = dict[str, Any]

is_run = bridge.is_run


@dataclasses.dataclass(frozen=True)
class TrainedEncoder:
    """An encoder with its weights and the settings of its images.

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
) -> TrainedEncoder:
    """Load a trained encoder from a run or a weights file.

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
        raise UserError(f"which={which!r} is no encoder of a run; use one of {', '.join(PARTS)}")
    given: dict[str, Any] = {"image_size": image_size, "mean": tuple(mean), "std": tuple(std)}
    given = {name: value for name, value in given.items() if value}
    if is_run(place):
        return _of_run(place, which, step, stem, given)
    if step and files.absolute(place).exists():  # 0 is the step of every file
        raise UserError(f"step={step} is for runs, and {place} is a file; leave step out")
    return _of_file(place, which, stem, given)


def _create(config: ConfigDict, given: Settings, which: str, **fields: Any) -> TrainedEncoder:
    """Create the encoder for a run's or a file's settings, of which `given` ones are changed."""
    config.update(given)
    check_views(config)
    options = encoder_options(config)
    if which == "key":
        options["predictor"] = "none"
    return TrainedEncoder(encoders.create(**options), config=config, **fields)


def _of_run(place: str, which: str, step: int | None, stem: str, given: Settings) -> TrainedEncoder:
    """Load the encoder of a run from a sound checkpoint."""
    if stem:
        raise UserError(
            f"stem={stem!r} is for files; the run in {place} has its own stem, so leave it out"
        )
    config = read_config(place)
    step = workdir.sound_step(place, step)
    variables = workdir.variables(place, which, step)
    if not variables["params"]:
        raise UserError(
            f"{place} has no momentum encoder (key_encoder={config.key_encoder!r}); which='query'"
            " works"
        )
    bridge.check_run(place, step, variables)
    return _create(config, given, which, variables=variables, step=step)


def _of_file(place: str, which: str, stem: str, given: Settings) -> TrainedEncoder:
    """Load the encoder of a file or folder of weights."""
    pretrained = bridge.load(place, stem=stem)
    variables = pretrained.chosen(which)
    if variables is None:
        raise UserError(f"{place} holds no momentum encoder; which='query' works")
    known = pretrained.preprocessing | given
    assumed = tuple(name for name in ("image_size", "mean", "std") if name not in known)
    if pretrained.channels != 3 and {"mean", "std"} & set(assumed):
        raise UserError(
            f"{place} takes images of {pretrained.channels} channels; give mean and std, "
            f"{pretrained.channels} numbers each (python -m moco_jax.doctor prints those of the "
            "images in a folder)"
        )
    return _create(
        _config_of(pretrained),
        given,
        which,
        variables=variables,
        step=0,
        assumed=assumed,
        remarks=pretrained.remarks,
    )


def _config_of(pretrained: Pretrained) -> ConfigDict:
    """Return the settings of a file of weights, or of ImageNet's recipes where it is silent."""
    config, options = config_lib.default_config(), dict(pretrained.options)
    preprocessing = pretrained.preprocessing
    # A network with a stem for small images is shown images that are not enlarged first.
    small = options.get("stem", "imagenet") != "imagenet"
    resize = preprocessing.get("resize", pretrained.image_size if small else 0)
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
        **{name: preprocessing[name] for name in ("mean", "std") if name in preprocessing},
    )
    return config


def untrained(trained: TrainedEncoder) -> TrainedEncoder:
    """Return the encoder of the same run before its first step.

    For a file of weights it is its architecture, drawn afresh.
    """
    config = trained.config
    rng, _ = jax.random.split(random_keys.of_seed(config.seed))
    images = jnp.zeros((1, config.image_size, config.image_size, config.channels))

    def create() -> Any:
        return trained.encoder.init(rng, images, train=False, method=trained.encoder.predict)

    # The program runs once: on a CPU it is ready in a fourth of the time if it is not optimised.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    made = jax.device_get(jax.jit(create, compiler_options=options)())
    variables = {"params": made["params"], "batch_stats": made.get("batch_stats", {})}
    return dataclasses.replace(trained, variables=variables, step=0)
