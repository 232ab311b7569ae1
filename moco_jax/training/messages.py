"""The sentences of a run: facts at its start, the line that renews itself, a score."""

import math

import jax
from etils import epath
from ml_collections import ConfigDict

from moco_jax.base.console import duration, size
from moco_jax.data.views import recipes
from moco_jax.method.configured import method_of, peak_learning_rate
from moco_jax.method.state import TrainState
from moco_jax.training.assembly import Parts


def facts(config: ConfigDict, parts: Parts, place: epath.Path, state: TrainState) -> dict[str, str]:
    """What will run, on what, and where it is written."""
    count = sum(x.size for x in jax.tree.leaves(state.params))
    devices = jax.devices()
    rate = f"{config.lr:g}"
    if config.lr_reference_batch:
        rate = f"{peak_learning_rate(config):g} = {config.lr:g} x {config.batch_size} / {config.lr_reference_batch}"
    found = {
        "devices": f"{len(devices)} x {devices[0].device_kind} on {jax.process_count()} host(s), {parts.program.dtype}",
        "images": f"{len(parts.source):,} of {config.dataset} ({config.split}){_held(parts)}",
        "encoder": f"{config.arch}, {count:,} parameters",
        "batch": f"{config.batch_size} in {config.bn_groups} BN groups",
        "dictionary": dictionary(config, len(parts.source)),
        "steps": f"{parts.total_steps:,} = {config.epochs} epochs x {parts.steps_per_epoch:,}; lr {rate}",
        "workdir": str(place),
    }
    said = recipes.without_colours(config.augment, config.channels)
    if said:
        found["views"] = said
    if int(state.step):
        found["resumed"] = f"at step {int(state.step)}"
    return found


def _held(parts: Parts) -> str:
    return f", {size(math.prod(parts.held))} on every device" if parts.held else ""


def dictionary(config: ConfigDict, examples: int) -> str:
    """Where negatives come from; a word where keys of a query's own example are among them."""
    text = method_of(config).describe()
    if config.key_encoder == "momentum":
        text += f", momentum {config.momentum}"
    if (
        config.dictionary == "queue"
        and config.queue_size >= examples
        and not config.mask_same_example
    ):
        text += (
            f"; older keys of a query's own image are among them, as {examples:,} images are no more "
            "(mask_same_example=True leaves them out)"
        )
    return text


def progress(
    step: int, n: dict[str, float], config: ConfigDict, parts: Parts, seconds_left: float
) -> str:
    """The line that renews itself."""
    chance = method_of(config).chance_level(config.batch_size)
    beside = "" if chance is None else f" (chance {chance:.2f})"
    utilised = f"MFU {n['mfu']:.1%}  " if "mfu" in n else ""
    return (
        f"epoch {step / parts.steps_per_epoch:6.2f}/{config.epochs}  loss {n['loss']:.3f}{beside}  "
        f"top-1 {n['top1']:.1%}  {n['images_per_second']:,.0f} images/s  waiting {n['waiting_share']:.0%}  "
        f"{utilised}left {duration(seconds_left)}"
    )


def score(when: str, numbers: dict[str, float]) -> str:
    """One line on a monitor's result."""
    names = {
        "feature_spread": "feature spread",
        "effective_rank": "effective rank",
        "drift": "drift of keys",
    }
    parts = [f"kNN {numbers['knn']:.2%}"] if "knn" in numbers else []
    parts += [f"{said} {numbers[name]:.2f}" for name, said in names.items() if name in numbers]
    return f"{when}: {', '.join(parts)}"
