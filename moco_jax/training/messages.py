"""Lines of a run for a person: facts at its start, the progress line, scores."""

import math

import jax
from etils import epath
from ml_collections import ConfigDict

from moco_jax.base.console import duration, size
from moco_jax.data import resident
from moco_jax.data.configured import strengths_of, views_in_words
from moco_jax.data.views import recipes
from moco_jax.method.configured import method_of, peak_learning_rate
from moco_jax.method.state import TrainState
from moco_jax.training.assembly import RunSetup


def facts(
    config: ConfigDict, setup: RunSetup, place: epath.Path, state: TrainState
) -> dict[str, str]:
    """Describe what will run, on what, and where it is written."""
    count = sum(x.size for x in jax.tree.leaves(state.params))
    devices = jax.devices()
    hardware = f"{len(devices)} x {devices[0].device_kind} on {jax.process_count()} host(s)"
    steps = f"{setup.total_steps:,} = {config.epochs} epochs x {setup.steps_per_epoch:,}"
    if config.minutes:
        steps = f"as many as fit in minutes={config.minutes:g}, {setup.steps_per_epoch:,} an epoch"
    rate = f"{config.lr:g}"
    if config.lr_reference_batch:
        scaling = f"{config.lr:g} x {config.batch_size} / {config.lr_reference_batch}"
        rate = f"{peak_learning_rate(config):g} = {scaling}"
    lines = {
        "devices": f"{hardware}, {setup.program.dtype}",
        "images": f"{len(setup.source):,} of {config.dataset} ({config.split}){_resident(setup)}",
        "encoder": f"{config.arch}, {count:,} parameters",
        "batch": f"{config.batch_size} in {config.bn_groups} BN groups",
        "dictionary": dictionary(config, len(setup.source)),
        "steps": f"{steps}; lr {rate}",
        "workdir": str(place),
    }
    strengths = strengths_of(config)
    remarks = [
        views_in_words(config) if strengths else "",
        recipes.without_colours(config.augment, config.channels, strengths),
    ]
    if any(remarks):
        lines["views"] = "; ".join(filter(None, remarks))
    if int(state.step):
        lines["resumed"] = f"at step {int(state.step)}"
    return lines


def _resident(setup: RunSetup) -> str:
    """Describe what each device holds of resident images, and what travels in a step."""
    if not setup.resident_shape:
        return ""
    held = resident.bytes_a_device(setup.resident_shape, setup.program.mesh.size)
    batch = len(setup.program.batch.index) * math.prod(setup.resident_shape[1:])
    return f", {size(held)} on each device; a step moves its batch's, {size(batch)}"


def dictionary(config: ConfigDict, examples: int) -> str:
    """Describe where negatives come from, and a query's own older keys among them."""
    text = method_of(config).describe()
    if config.key_encoder == "momentum":
        text += f", momentum {config.momentum}"
    if (
        config.dictionary == "queue"
        and config.queue_size >= examples
        and not config.mask_same_example
    ):
        text += (
            f"; older keys of a query's own image are among them, as {examples:,} images are no "
            "more (mask_same_example=True leaves them out)"
        )
    return text


def progress(
    epoch: float, epochs: float, n: dict[str, float], config: ConfigDict, seconds_left: float
) -> str:
    """Return the progress line after `epoch` of `epochs`; `n`: the numbers of the clock."""
    chance = method_of(config).chance_level(config.batch_size)
    beside = "" if chance is None else f" (chance {chance:.2f})"
    probe = f"probe {n['probe_train']:.1%} of views  " if "probe_train" in n else ""
    utilised = f"MFU {n['mfu']:.1%}  " if "mfu" in n else ""
    return (
        f"epoch {epoch:6.2f}/{epochs:.4g}  loss {n['loss']:.3f}{beside}  "
        f"top-1 {n['top1']:.1%}  {probe}{n['images_per_second']:,.0f} images/s  waiting "
        f"{n['waiting_share']:.0%}  {utilised}left {duration(seconds_left)}"
    )


def score(when: str, numbers: dict[str, float], verdict: str = "") -> str:
    """Describe a monitor's score in one line, with the `verdict` on the run behind it."""
    names = {
        "feature_spread": "feature spread",
        "effective_rank": "effective rank",
        "lidar": "LiDAR",
        "alignment": "alignment",
        "uniformity": "uniformity",
        "spectrum_decay": "decay of the spectrum",
        "drift": "drift of keys",
    }
    shares = {"knn": "kNN", "probe": "online probe"}
    parts = [f"{word} {numbers[name]:.2%}" for name, word in shares.items() if name in numbers]
    parts += [f"{word} {numbers[name]:.2f}" for name, word in names.items() if name in numbers]
    return f"{when}: {', '.join(parts)}{f'; {verdict}' if verdict else ''}"
