"""An encoder out of a finished or running pretraining: read back from a workdir without the rest of the run's state."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from moco_jax import checkpoint, encoders, files
from moco_jax import config as config_lib
from moco_jax.errors import UserError

# which encoder of a run -> its fields in the state
PARTS = {"query": ("params", "batch_stats"), "key": ("key_params", "key_batch_stats")}


@dataclasses.dataclass(frozen=True)
class Trained:
    """An encoder with its weights and what its images are normalised with.

    Attributes:
        encoder: the Linen module; `features` before the head, a call after it.
        variables: `{'params', 'batch_stats'}` of NumPy arrays.
        config: the settings of the run.
        step: after which the weights were saved.
    """

    encoder: encoders.Encoder
    variables: dict[str, Any]
    config: ConfigDict
    step: int


def read_config(place: str) -> ConfigDict:
    """The settings of the run in the workdir `place`; UserError where there is none."""
    workdir = files.absolute(place)
    if not (workdir / "config.json").exists():
        raise UserError(f"{place} is no workdir: it has no config.json")
    config = config_lib.default_config()
    saved = checkpoint.read_config(workdir / "config.json")
    config.update({key: value for key, value in saved.items() if key in config})
    return config


def load(place: str, which: str = "query", step: int | None = None) -> Trained:
    """The encoder of the run in the workdir `place`.

    Args:
        place: the workdir.
        which: 'query', or 'key' for the momentum encoder.
        step: of which checkpoint; None: the last sound one.

    Raises:
        UserError: no run or no sound checkpoint there, or no such encoder in it.
    """
    if which not in PARTS:
        raise UserError(f"which={which!r} is no encoder of a run; known are {', '.join(PARTS)}")
    config, workdir = read_config(place), files.absolute(place)
    if step is None:
        sound = [found.step for found in checkpoint.examine(workdir) if not found.wrong]
        if not sound:
            raise UserError(f"{place} has no sound checkpoint")
        step = sound[0]
    folder = workdir / "checkpoints" / str(step)
    if not folder.exists():
        raise UserError(f"{place} has no checkpoint of step {step}")
    params, batch_stats = _restore(folder / "state", PARTS[which])
    if not params:
        raise UserError(f"{place} has no momentum encoder (key_encoder={config.key_encoder!r})")
    options = config_lib.encoder_options(config)
    if which == "key":
        options["predictor"] = "none"
    encoder = encoders.create(**options)
    return Trained(encoder, {"params": params, "batch_stats": batch_stats}, config, step)


def queue(place: str, step: int) -> np.ndarray | None:
    """The keys in the queue of the run in the workdir `place` after `step`: `[K, dim]`, oldest first; None without one."""
    workdir = files.absolute(place)
    saved = checkpoint.read_config(workdir / "config.json")
    if saved.get("dictionary", "queue") != "queue":
        return None
    (found,) = _restore(workdir / "checkpoints" / str(step) / "state", ("dictionary",))
    oldest_first = np.roll(found["keys"], -int(found["pointer"]), axis=0)
    return oldest_first.reshape(-1, oldest_first.shape[-1])[-saved["queue_size"] :]


def untrained(found: Trained) -> Trained:
    """The encoder of the same run before its first step."""
    config = found.config
    rng, _ = jax.random.split(jax.random.key(config.seed))
    images = jnp.zeros((1, config.image_size, config.image_size, config.channels))

    def create() -> Any:
        return found.encoder.init(rng, images, train=False, method=found.encoder.predict)

    # It runs once: on a CPU a program that is not optimised is there in a fourth of the time.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    made = jax.device_get(jax.jit(create, compiler_options=options)())
    variables = {"params": made["params"], "batch_stats": made.get("batch_stats", {})}
    return dataclasses.replace(found, variables=variables, step=0)


def _restore(folder: Any, names: tuple[str, ...]) -> list[Any]:
    """These fields of the state in `folder`, as NumPy arrays; nothing else is read."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        tree = reader.metadata(folder).item_metadata.tree
        wanted = {name: tree[name] for name in names if tree.get(name)}
        arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
        found = reader.restore(
            folder,
            args=ocp.args.PyTreeRestore(item=wanted, restore_args=arguments, partial_restore=True),
        )
    return [found.get(name, {}) for name in names]
